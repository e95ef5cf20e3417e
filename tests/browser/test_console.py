"""The console's pages in a real browser, on the real daemon: the sample clip as a camera, the demo model, a real broker.

`make test-browser` runs this. PALISADE names another daemon, CHROMIUM another browser, SCREENSHOTS a folder for pictures of the pages,
ASSETS one whose files take the place of those in the program: so that pages are worked on without a build.
"""

import base64
import contextlib
import json
import os
import re
import unittest
import urllib.parse
import urllib.request
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

import parts
from parts import LONG, until

WORDS = "person; cat; dog; car; bus; truck; bicycle; bird; horse; traffic light"
PROMPT = f"detect {WORDS}"
TOKEN = "a-token-of-the-browser-tests"
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

# What a page does wrong without showing it comes out on the console, for `watched` to find.
WATCH = """
document.addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""

# Sixteen by nine pixels of a picture, as text: another picture gives another text.
PIXELS = """(selector) => {
  const shown = document.querySelector(selector);
  if (!shown || !(shown.naturalWidth || shown.videoWidth)) return "";
  const canvas = document.createElement("canvas");
  canvas.width = 32; canvas.height = 18;
  const context = canvas.getContext("2d");
  context.drawImage(shown, 0, 0, 32, 18);
  return Array.from(context.getImageData(0, 0, 32, 18).data).join(" ");
}"""

NOT_BY_ITSELF = "HTMLMediaElement.prototype.canPlayType = () => '';"


def truth(label, second):
    """Left, top, right and bottom in pixels of what the sample clip has there, by its own account."""
    clip = json.loads((parts.SAMPLES / "street.truth.json").read_text())
    top, left, bottom, right = next(one["box"] for one in clip["frames"][second * clip["fps"]]["objects"] if one["label"] == label)
    return left * clip["width"], top * clip["height"], right * clip["width"], bottom * clip["height"]


def from_folder(route):
    """The daemon's answer with another body."""
    name = urllib.parse.urlparse(route.request.url).path.removeprefix("/assets").strip("/") or "index"
    file = Path(os.environ["ASSETS"]) / (name if "." in name else f"{name}.html")
    try:
        response = route.fetch(max_redirects=0)
    except Error:
        # The page has gone meanwhile.
        return
    if response.status == 200 and file.exists():
        route.fulfill(response=response, body=file.read_bytes())
    else:
        route.fulfill(response=response)


def setUpModule():
    global browser, stack
    stack = contextlib.ExitStack()
    playwright = stack.enter_context(sync_playwright())
    program = os.environ.get("CHROMIUM") or parts.find("chromium", "chromium-browser", "google-chrome")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    browser = playwright.chromium.launch(executable_path=program, args=flags)
    stack.callback(browser.close)


def tearDownModule():
    stack.close()


class Pages(unittest.TestCase):
    """Pages of one daemon. Each test has a browser of its own, and fails for any error that its pages tell."""

    def setUp(self):
        self.told = []
        # Statuses of refusals that a test asks for; Chromium tells of each.
        self.expected = ()
        self.contexts = []

    def tearDown(self):
        for context in self.contexts:
            context.close()
        wrong = [text for text in self.told if not any(f"the server responded with a status of {status}" in text for status in self.expected)]
        self.assertEqual(wrong, [], "the page told of errors")

    def page(self, size=DESKTOP, script="", **more):
        context = browser.new_context(viewport=size, **more)
        self.contexts.append(context)
        context.add_init_script(WATCH + script)
        if os.environ.get("ASSETS"):
            context.route(re.compile(r"/(assets/[^/]+|playground|events)?(\?.*)?$"), from_folder)
        page = context.new_page()
        page.set_default_timeout(LONG * 1000)
        page.on("console", lambda message: self.told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.told.append(f"error: {error}"))
        return page

    def open(self, path="/", **more):
        page = self.page(**more)
        page.goto(self.daemon.address + path)
        return page

    def api(self, path):
        with urllib.request.urlopen(self.daemon.address + path, timeout=30) as answer:
            return json.load(answer)


class Console(Pages):
    """One camera, a broker, events with pictures and clips, control on."""

    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        cls.folder = Path(cls.stack.enter_context(parts.folder()))
        cls.broker = parts.Broker(cls.folder)
        cls.stack.callback(cls.broker.stop)
        zone = '[[camera.zone]]\nname = "road"\npoints = [[0.0, 0.6], [1.0, 0.6], [1.0, 1.0], [0.0, 1.0]]'
        cls.daemon = parts.Daemon(cls.folder, f"""
{parts.MODEL}
{parts.cameras("street", prompt=PROMPT, more='record = "events"' + chr(10) + zone)}
[record]
dir = "{cls.folder}/clips"
pre_roll = 2
post_roll = 1
[events]
database = "{cls.folder}/events.sqlite"
[events.snapshots]
dir = "{cls.folder}/objects"
[mqtt]
host = "127.0.0.1"
port = {cls.broker.port}
state_dir = "{cls.folder}/state"
[console]
listen = "127.0.0.1:PORT"
control = true
""")
        cls.stack.callback(cls.daemon.stop)
        cls.picture = parts.frame(12, cls.folder / "dog and bus.png")

    def ear(self, topic):
        ear = parts.Ear(self.broker.port, topic)
        self.addCleanup(ear.stop)
        return ear

    def moves(self, page, selector):
        first = until("picture", lambda: page.evaluate(PIXELS, selector))
        until("other picture", lambda: page.evaluate(PIXELS, selector) not in ("", first))

    def test_live_pictures_move_and_the_card_says_what_is_there(self):
        page = self.open()
        card = page.locator("article", has=page.get_by_role("heading", name="street"))
        card.get_by_text("Running").wait_for()
        self.moves(page, ".screen img")
        until("objects", lambda: card.locator(".objects li").count() > 0)
        names = set(WORDS.split("; "))
        shown = card.locator(".objects .name > span:first-child").all_inner_texts()
        self.assertLessEqual(set(shown), names)
        until("figures", lambda: "Last look" in card.locator(".rates").inner_text())
        self.assertEqual(page.locator("#link-text").inner_text(), "connected")
        self.assertIn("palisade", page.locator("#facts").inner_text())
        self.assertTrue(page.locator("#logout").is_hidden(), "there is no token to forget")

    def test_live_event_comes_without_a_reload(self):
        page = self.open()
        page.evaluate("window.same = true")
        shots = lambda: set(page.locator(".shot").evaluate_all("all => all.map(one => one.href)"))
        page.locator(".screen img").wait_for()
        before = shots()
        until("event", lambda: shots() - before)
        self.assertTrue(page.evaluate("window.same"))
        until("picture of an event", lambda: page.locator(".shot img").evaluate_all("all => all.some(one => one.naturalWidth > 0)"))

    def test_live_prompt_reaches_the_broker_and_comes_back(self):
        self.expected = (422,)
        ear = self.ear("palisade/street/prompt/state")
        page = self.open()
        field = page.get_by_label("Looks for")
        until("prompt", lambda: field.input_value() == PROMPT)
        field.fill("detect dog; bus")
        page.get_by_role("button", name="Save").wait_for()
        field.press("Escape")
        self.assertEqual(field.input_value(), PROMPT)
        field.fill("   ")
        field.press("Enter")
        trouble = page.locator(".prompt .trouble")
        until("sentence", lambda: len(trouble.inner_text()) > 10)
        field.fill("detect dog; bus")
        self.assertEqual(trouble.inner_text(), "")
        field.press("Enter")
        until("message", lambda: "palisade/street/prompt/state detect dog; bus" in ear.heard)
        until("saved field", lambda: page.get_by_role("button", name="Save").is_hidden())
        page.reload()
        until("prompt after a reload", lambda: field.input_value() == "detect dog; bus")
        field.fill(PROMPT)
        page.get_by_role("button", name="Save").click()
        until("first prompt", lambda: ear.heard[-1] == f"palisade/street/prompt/state {PROMPT}")

    def test_live_looks_are_turned_off_and_on_by_keyboard(self):
        ear = self.ear("palisade/street/detect/state")
        page = self.open()
        switch = page.get_by_role("switch")
        until("switch", lambda: switch.is_enabled() and switch.get_attribute("aria-checked") == "true")
        self.tab_to(page, '[role="switch"]')
        page.keyboard.press("Space")
        until("OFF", lambda: ear.heard[-1:] == ["palisade/street/detect/state OFF"])
        until("switch that is off", lambda: switch.get_attribute("aria-checked") == "false" and switch.is_enabled())
        self.assertTrue(page.evaluate('document.activeElement.role === "switch"'), "the focus was lost")
        page.keyboard.press("Space")
        until("ON", lambda: ear.heard[-1:] == ["palisade/street/detect/state ON"])

    def test_live_video_at_full_rate(self):
        for script in ("", NOT_BY_ITSELF):
            with self.subTest("by hls.js" if script else "as the browser does it"):
                page = self.open(script=script)
                button = page.get_by_role("button", name="Full rate")
                button.click()
                state = "(() => { const v = document.querySelector('.screen video'); return v && !v.hidden && v.readyState >= 2 ? [v.currentTime, v.videoWidth] : null; })()"
                first = until("video", lambda: page.evaluate(state))
                self.assertEqual(first[1], 1280)
                until("later picture", lambda: (page.evaluate(state) or first)[0] > first[0] + 0.5)
                self.moves(page, ".screen video")
                button.click()
                until("pictures again", lambda: page.locator(".screen video").count() == 0 and page.evaluate(PIXELS, ".screen img"))
                page.close()

    def test_playground_finds_what_is_in_a_picture(self):
        page = self.open("/playground")
        page.set_input_files("#file", self.picture)
        page.locator("#preview").wait_for()
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_label("Prompt").press("Enter")
        page.locator("#rows tr").first.wait_for()
        labels = page.locator("#rows .name").all_inner_texts()
        self.assertEqual(sorted(labels), ["bus", "dog", "traffic light"])
        self.assertIn("<loc", page.locator("#raw").inner_text())
        until("picture", lambda: page.locator("#annotated").evaluate("image => image.naturalWidth") == 1280)
        # In both measures, and where the clip's own account of itself has it.
        row = [float(text) for text in page.locator("#rows tr", has_text="dog").locator("td").all_inner_texts()[2:]]
        for share, pixel, whole, true in zip(row[:4], row[4:], (1280, 720, 1280, 720), truth("dog", 12)):
            self.assertAlmostEqual(share * whole, pixel, delta=1)
            self.assertAlmostEqual(pixel, true, delta=40)
        page.get_by_role("button", name="Copy as JSON").click()
        page.get_by_role("button", name="Copied").wait_for()

    def test_playground_takes_what_a_camera_shows(self):
        page = self.open("/playground")
        page.get_by_label("or what a camera shows now").wait_for()
        page.get_by_role("button", name="Take it").click()
        until("preview", lambda: page.locator("#preview").evaluate("image => image.naturalWidth") > 0)
        page.get_by_label("Prompt").fill("detect traffic light")
        page.get_by_role("button", name="Look", exact=True).click()
        page.locator("#said").wait_for()
        # The small model names one twice at times.
        self.assertEqual(set(page.locator("#rows .name").all_inner_texts()), {"traffic light"})

    def test_playground_tells_when_nothing_was_found(self):
        page = self.open("/playground")
        self.assertEqual(page.get_by_label("Prompt").input_value(), "detect cat; dog; car")
        page.set_input_files("#file", self.picture)
        page.get_by_label("Prompt").fill("detect cat; horse")
        page.get_by_role("button", name="Look", exact=True).click()
        page.get_by_role("heading", name="Nothing found").wait_for()
        self.assertTrue(page.locator("#raw").is_visible())
        self.assertNotEqual(page.locator("#raw").inner_text().strip(), "")
        self.assertTrue(page.locator("#table-box").is_hidden())

    def test_what_a_model_writes_is_never_markup(self):
        markup = '<img src="/no" onerror="document.title = 1"> <b>dog</b>'
        page = self.page()

        box = {"x_min": 0.1, "y_min": 0.1, "x_max": 0.5, "y_max": 0.5}
        detection = {"label": markup, "score": 0.5, "locs": [102, 102, 512, 512], "box": box, "pixels": box}
        picture = {"media_type": "image/png", "base64": base64.b64encode(self.picture.read_bytes()).decode()}
        said = {"raw": markup, "finish": "eos", "detections": [detection], "dropped": [{"text": markup, "why": markup}], "annotated": picture}

        def answer(route):
            route.fulfill(json=said)

        page.route("**/api/v1/detect", answer)
        page.goto(self.daemon.address + "/playground")
        page.set_input_files("#file", self.picture)
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_role("button", name="Look", exact=True).click()
        page.locator("#rows tr").first.wait_for()
        self.assertEqual(page.locator("#rows .name").first.inner_text(), markup)
        self.assertEqual(page.locator("#raw").inner_text(), markup)
        self.assertIn(markup, page.locator("#verdict").inner_text())
        self.assertEqual(page.locator("#answer b, #answer [onerror]").count(), 0)

    def test_playground_says_what_is_wrong(self):
        self.expected = (415, 422)
        page = self.open("/playground")
        trouble = page.locator("#trouble")
        look = page.get_by_role("button", name="Look", exact=True)
        look.click()
        self.assertIn("Choose a picture first", trouble.inner_text())
        no_picture = self.folder / "letter.jpg"
        no_picture.write_text("Dear reader, this is no picture.")
        page.set_input_files("#file", no_picture)
        self.assertEqual(trouble.inner_text(), "")
        look.click()
        until("sentence", lambda: len(trouble.inner_text()) > 10)
        self.assertTrue(page.locator("#said").is_hidden())
        self.assertTrue(trouble.inner_text().endswith("."))

    def finished(self):
        """An object that has gone, with a picture and a clip."""
        def look():
            whole = [one for one in self.api("/api/v1/events?limit=200")["events"] if one["end_time"] and one["snapshot"] and one["clip"]]
            return whole[0] if whole else None
        return until("finished event with a clip", look)

    def test_events_are_listed_by_filters(self):
        one = self.finished()
        page = self.open("/events")
        page.locator(".tile").first.wait_for()
        page.get_by_label("Label").fill(one["label"])
        until("filtered list", lambda: set(page.locator(".tile .first > span:nth-child(2)").all_inner_texts()) == {one["label"]})
        self.assertIn(f"label={one['label']}".replace(" ", "+"), page.url)
        page.get_by_label("Label").fill("no such thing")
        page.get_by_role("heading", name="No event is like this").wait_for()
        page.get_by_role("button", name="Clear").click()
        until("whole list", lambda: page.locator(".tile").count() > 0)
        until("pictures", lambda: page.locator(".tile img").evaluate_all("all => all.some(one => one.naturalWidth > 0)"))

    def test_events_clip_plays(self):
        one = self.finished()
        page = self.page()
        ranges = []
        page.on("response", lambda response: ranges.append(response.status) if response.url.endswith("/clip.mp4") else None)
        page.goto(f"{self.daemon.address}/events?id={one['track_id']}")
        video = page.locator("dialog video")
        video.wait_for()
        until("clip", lambda: video.evaluate("video => video.readyState") >= 2)
        start = video.evaluate("video => video.currentTime")
        if one["clip_offset_s"] is not None:
            self.assertAlmostEqual(start, max(0, one["clip_offset_s"] - 1), delta=0.5)
        video.evaluate("video => video.play()")
        until("later picture", lambda: video.evaluate("video => video.currentTime") > start + 0.3)
        self.assertEqual(video.evaluate("video => video.videoWidth"), 1280)
        self.assertIn(206, ranges)
        page.get_by_role("button", name="Picture").click()
        until("picture", lambda: page.locator("dialog img").evaluate("image => image.naturalWidth") > 0)

    def test_events_by_keyboard(self):
        self.finished()
        page = self.open("/events")
        page.locator(".tile").first.wait_for()
        self.tab_to(page, ".tile")
        here = page.evaluate("document.activeElement.href")
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        dialog.wait_for()
        self.assertEqual(page.url, here)
        page.keyboard.press("Escape")
        until("list", lambda: dialog.is_hidden())
        self.assertEqual(page.evaluate("document.activeElement.href"), here, "the focus was lost")
        self.assertNotIn("id=", page.url)

    def test_unknown_event_is_told(self):
        self.expected = (404,)
        page = self.open("/events?id=1.000-nothing")
        until("sentence", lambda: len(page.locator("#media .none").inner_text()) > 10)

    def tab_to(self, page, selector):
        """Reaches an element by the tab key alone, and what it passes shows its focus."""
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                self.assertNotEqual(outline, "none", f"{selector} does not show its focus")
                return
        self.fail(f"{selector} is not reached by tab")

    def test_keyboard_skips_to_the_content(self):
        for path in ("/", "/playground", "/events"):
            page = self.open(path)
            page.locator("main").wait_for()
            page.keyboard.press("Tab")
            self.assertEqual(page.evaluate("document.activeElement.textContent"), "Skip to content")
            page.keyboard.press("Enter")
            self.assertEqual(page.evaluate("document.activeElement.id"), "main")
            page.close()

    def test_no_page_is_wider_than_a_phone(self):
        self.finished()
        for width in (360, 390):
            page = self.page(size={"width": width, "height": 780}, is_mobile=True, has_touch=True)
            for path, there in (("/", ".objects li"), ("/playground", "#from"), ("/events", ".tile")):
                page.goto(self.daemon.address + path)
                until(there, lambda: page.locator(there).count() > 0)
                self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width, path)
            page.close()

    def test_colours_are_kept(self):
        page = self.open()
        background = "getComputedStyle(document.body).backgroundColor"
        button = page.get_by_role("button", name="Colours")
        seen = [page.evaluate(background)]
        for _ in range(2):
            button.click()
            seen.append(page.evaluate(background))
        self.assertEqual(len(set(seen)), 2, "there are light and dark")
        page.goto(f"{self.daemon.address}/events")
        self.assertEqual(page.evaluate(background), seen[-1])

    def test_screenshots(self):
        """For who wants to look: SCREENSHOTS=folder."""
        folder = os.environ.get("SCREENSHOTS")
        if not folder:
            self.skipTest("SCREENSHOTS names no folder")
        one = self.finished()
        Path(folder).mkdir(parents=True, exist_ok=True)
        pages = {"live": "/", "playground": "/playground", "events": "/events", "event": f"/events?id={one['track_id']}"}
        for name, path in pages.items():
            for kind, size, colours in (("desktop", DESKTOP, "dark"), ("desktop-light", DESKTOP, "light"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark")):
                page = self.open(path, size=size, color_scheme=colours)
                if name == "live":
                    until("objects and events", lambda: page.locator(".objects li").count() > 2 and page.locator(".shot img").count() > 3)
                    self.moves(page, ".screen img")
                elif name == "playground":
                    page.set_input_files("#file", self.picture)
                    page.get_by_label("Prompt").fill("detect dog; bus; traffic light")
                    page.get_by_label("Prompt").press("Enter")
                    page.locator("#rows tr").first.wait_for()
                else:
                    page.locator(".tile").first.wait_for()
                    page.wait_for_timeout(1500)
                page.screenshot(path=Path(folder) / f"{name}-{kind}.png")
                page.close()


class Closed(Pages):
    """Five cameras behind a token, without a broker, and with nothing kept."""

    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.addClassCleanup(cls.stack.close)
        folder = cls.stack.enter_context(parts.folder())
        ids = ("one", "two", "three", "four", "five")
        config = f'{parts.MODEL}{parts.cameras(*ids, interval=4.0)}[console]\nlisten = "127.0.0.1:PORT"\n'
        cls.daemon = parts.Daemon(folder, config, {"PALISADE_CONSOLE_TOKEN": TOKEN})
        cls.stack.callback(cls.daemon.stop)

    def logged_in(self, path="/", **more):
        page = self.open("/login", **more)
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{self.daemon.address}/")
        if path != "/":
            page.goto(self.daemon.address + path)
        return page

    def test_logging_in_and_out(self):
        self.expected = (401,)
        page = self.open()
        page.wait_for_url("**/login")
        page.get_by_label("Token").fill("another token than the right one")
        page.get_by_role("button", name="Log in").click()
        page.get_by_text("this is not the token").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="three").wait_for()
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url("**/login")
        page.goto(self.daemon.address)
        page.wait_for_url("**/login")

    def test_many_cameras_share_few_connections(self):
        page = self.logged_in()
        all_seen = "all => all.length === 5 && all.every(one => one.naturalWidth > 0)"
        page.set_viewport_size({"width": 1900, "height": 2600})
        until("pictures of all", lambda: page.locator(".screen img").evaluate_all(all_seen))
        streams = lambda: page.locator(".screen img").evaluate_all("all => all.filter(one => one.src.includes('.mjpeg')).length")
        self.assertEqual(streams(), 0)
        page.get_by_role("heading", name="four").hover()
        until("stream of the one that is pointed at", lambda: streams() == 1)
        self.assertEqual(page.get_by_role("switch").count(), 0, "console.control is off")
        self.assertEqual(page.locator("textarea:visible").count(), 0)

    def test_events_that_are_not_kept(self):
        page = self.logged_in("/events")
        page.get_by_role("heading", name="does not keep its events").wait_for()
        self.assertIn("database", page.locator("#list pre").inner_text())

    def test_a_lost_connection_is_told_and_comes_back(self):
        # Until the model is loaded again.
        self.expected = (503,)
        page = self.logged_in()
        until("connection", lambda: page.locator("#link-text").inner_text() == "connected")
        self.daemon.stop()
        until("no connection", lambda: page.locator("#link-text").inner_text() == "no connection")
        self.assertTrue(page.locator("#banner").is_visible())
        self.daemon.begin()
        until("connection", lambda: page.locator("#link-text").inner_text() == "connected")
        until("no banner", lambda: page.locator("#banner").is_hidden())
        # That requests failed meanwhile is what was to be shown.
        self.told = [text for text in self.told if "net::ERR_" not in text]


if __name__ == "__main__":
    program = unittest.main(exit=False, verbosity=2)
    result = program.result
    failed = len(result.failures) + len(result.errors)
    print(f"browser: {result.testsRun - failed - len(result.skipped)} passed, {failed} failed, {len(result.skipped)} skipped", flush=True)
    raise SystemExit(0 if result.wasSuccessful() else 1)
