// A camera's picture, and which of them move how.
//
// A browser opens about six connections to a host over HTTP/1.1, and each stream of pictures takes one for as long as it is watched.
// So a few move as streams; where more cameras are on screen than that, the one that is pointed at does, and the others are asked
// for a picture now and then. What is not on screen, or in a tab that nobody sees, is not asked for at all.

import { el, icon, sentence } from "/assets/app.js";

/** Streams at once. With the stream of events four connections; the rest is for everything else. */
const STREAMS = 3;
/** Single pictures that are asked for at once, over all cameras. */
const ASKED = 2;
/** Between two single pictures of a camera, in milliseconds; after a failure. */
const BETWEEN = 650;
const AFTER_FAILURE = 3000;
/** A stream that shows nothing for so long is begun anew. */
const NO_PICTURE = 15_000;
/** For video at full rate to begin. */
const BEGIN = 25_000;
/** Heights that the daemon makes. */
const HEIGHTS = [240, 360, 480, 720];

const screens = new Set();
let focused = null;
let asked = 0;

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const screen = [...screens].find((screen) => screen.element === entry.target);
    if (screen) screen.seen = entry.isIntersecting;
  }
  plan();
}, { rootMargin: "80px" });

document.addEventListener("visibilitychange", () => {
  plan();
  for (const { hls } of screens) {
    if (document.hidden) hls?.stopLoad();
    else hls?.startLoad(-1);
  }
});

/** Who moves how, anew. */
export function plan() {
  const live = [...screens].filter((screen) => screen.seen && screen.alive && !document.hidden);
  const full = live.filter((screen) => screen.full);
  const rest = live.filter((screen) => !screen.full);
  let streams = Math.max(0, STREAMS - full.length);
  const moving = rest.length <= streams ? rest : rest.filter((screen) => screen === focused).slice(0, streams);
  for (const screen of screens) {
    if (!live.includes(screen)) screen.go(screen.full && screen.alive ? "full" : "still");
    else if (screen.full) screen.go("full");
    else screen.go(moving.includes(screen) ? "stream" : "poll");
  }
}

/** The place where a camera's picture is. */
export class Screen {
  constructor(camera) {
    this.camera = camera;
    this.alive = null;
    this.seen = false;
    this.full = false;
    this.mode = "still";
    this.round = 0;
    this.still = el("canvas", { "aria-hidden": "true" });
    this.image = el("img", { alt: `What ${camera.id} shows`, decoding: "async" });
    this.video = null;
    this.veil = el("div", { class: "veil", hidden: true });
    this.rate = el("button", { type: "button", class: "small", "aria-pressed": "false", text: "Full rate", title: "Video at the camera's own rate, some seconds behind", onclick: () => this.turn() });
    this.whole = el("button", { type: "button", class: "small", "aria-label": `${camera.id} on the whole screen`, onclick: () => this.fill() }, icon("full"));
    this.whole.hidden = !document.fullscreenEnabled;
    this.tools = el("div", { class: "row" }, this.rate, this.whole);
    this.element = el("div", { class: "screen" }, this.still, this.image, this.veil);
    screens.add(this);
    watcher.observe(this.element);
  }

  update(camera, state) {
    this.camera = camera;
    if (camera.frame) this.element.style.aspectRatio = `${camera.frame.width} / ${camera.frame.height}`;
    if (this.alive === state.shows) return;
    this.alive = state.shows;
    if (!this.alive) {
      this.keep();
      this.leave();
    }
    this.element.classList.toggle("down", !this.alive);
    this.tools.hidden = !this.alive;
    plan();
  }

  /** What lies over the picture: why there is none. */
  tick(state, told, length) {
    const notice = this.notice ?? (state.shows ? null : [state.veil, told, state.timeless ? "" : length]);
    this.veil.hidden = notice === null;
    if (notice === null) {
      delete this.veil.dataset.title;
      return this.veil.replaceChildren();
    }
    if (this.veil.dataset.title !== notice[0]) {
      this.veil.dataset.title = notice[0];
      this.veil.replaceChildren(icon(state.icon ?? "off"), el("strong"), el("span"), el("span"));
    }
    [...this.veil.children].slice(1).forEach((line, index) => {
      const text = notice[index] ?? "";
      if (line.textContent !== text) line.textContent = text;
    });
  }

  /** This is the one that is looked at. */
  focus() {
    if (focused === this) return;
    focused = this;
    plan();
  }

  fill() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.element.requestFullscreen().catch(() => {});
  }

  /** After the connection was lost a stream that stands still does not say so. */
  restart() {
    const { mode } = this;
    if (mode === "still" || mode === "full") return;
    this.go("still");
    this.go(mode);
  }

  close() {
    this.leave();
    this.go("still");
    screens.delete(this);
    watcher.unobserve(this.element);
  }

  go(mode) {
    if (mode === this.mode) return;
    if (this.mode === "stream" || this.mode === "poll") this.keep();
    this.mode = mode;
    const round = ++this.round;
    clearInterval(this.guard);
    if (mode === "stream") this.stream(round);
    else if (mode === "poll") this.poll(round);
    else this.show(null);
  }

  /** The smallest height that fills the place. */
  height() {
    const shown = this.element.clientHeight * Math.min(window.devicePixelRatio || 1, 1.5);
    return HEIGHTS.find((height) => height >= shown * 0.9) ?? HEIGHTS.at(-1);
  }

  show(address) {
    if (this.blob) URL.revokeObjectURL(this.blob);
    this.blob = null;
    if (address) this.image.src = address;
    else this.image.removeAttribute("src");
  }

  /** The picture of this moment stays while none comes. */
  keep() {
    const shown = this.video?.videoWidth ? this.video : this.image;
    const [width, height] = shown === this.video ? [shown.videoWidth, shown.videoHeight] : [shown.naturalWidth, shown.naturalHeight];
    if (!width || !height || !(shown === this.video || this.image.hasAttribute("src"))) return;
    this.still.width = width;
    this.still.height = height;
    try {
      this.still.getContext("2d").drawImage(shown, 0, 0);
    } catch {
      // A picture that is broken is not kept.
    }
  }

  stream(round) {
    const begin = () => {
      if (round !== this.round) return;
      clearTimeout(this.again);
      this.show(`${this.camera.live.mjpeg}?height=${this.height()}&n=${Date.now().toString(36)}`);
      const begun = Date.now();
      clearInterval(this.guard);
      this.guard = setInterval(() => {
        if (this.image.naturalWidth > 0 || Date.now() - begun < NO_PICTURE) return;
        begin();
      }, 2000);
    };
    this.image.onerror = () => {
      if (round !== this.round) return;
      clearTimeout(this.again);
      this.again = setTimeout(begin, AFTER_FAILURE);
    };
    begin();
  }

  async poll(round) {
    this.image.onerror = null;
    const rest = (ms) => new Promise((done) => setTimeout(done, ms));
    while (round === this.round) {
      if (asked >= ASKED) {
        await rest(40);
        continue;
      }
      const begun = Date.now();
      let failed = false;
      asked += 1;
      try {
        const response = await fetch(`${this.camera.live.jpg}?height=${this.height()}`, { cache: "no-store", signal: AbortSignal.timeout(10_000) });
        if (!response.ok) throw new Error(response.statusText);
        const blob = await response.blob();
        if (round === this.round) await this.swap(blob);
      } catch {
        failed = true;
      } finally {
        asked -= 1;
      }
      await rest(failed ? AFTER_FAILURE : Math.max(50, BETWEEN - (Date.now() - begun)));
    }
  }

  /** The new picture is decoded before it takes the place: no flash between two. */
  async swap(blob) {
    const address = URL.createObjectURL(blob);
    const ahead = new Image();
    ahead.src = address;
    try {
      await ahead.decode();
    } catch {
      URL.revokeObjectURL(address);
      return;
    }
    const old = this.blob;
    this.image.src = address;
    this.blob = address;
    if (old) URL.revokeObjectURL(old);
  }

  // At full rate

  turn() {
    if (this.full) {
      this.keep();
      this.leave();
      plan();
    } else {
      this.play();
    }
  }

  leave() {
    clearTimeout(this.late);
    this.hls?.destroy();
    this.hls = null;
    if (this.video) {
      this.video.onerror = null;
      this.video.removeAttribute("src");
      this.video.load();
      this.video.remove();
      this.video = null;
    }
    this.full = false;
    this.notice = undefined;
    this.rate.setAttribute("aria-pressed", "false");
    this.rate.textContent = "Full rate";
  }

  /** Until it plays the pictures go on below it. */
  async play() {
    this.rate.setAttribute("aria-pressed", "true");
    this.rate.textContent = "Starting…";
    const video = el("video", { playsinline: true, muted: true, autoplay: true, "aria-label": `Video of ${this.camera.id}` });
    video.muted = true;
    video.hidden = true;
    this.video = video;
    this.full = true;
    this.element.insertBefore(video, this.veil);
    const current = () => this.video === video;
    const give = (why) => {
      if (!current()) return;
      this.leave();
      plan();
      this.notice = ["No video at full rate", sentence(why)];
      setTimeout(() => (this.notice = undefined), 6000);
    };
    video.addEventListener("playing", () => {
      if (!current()) return;
      clearTimeout(this.late);
      video.hidden = false;
      this.rate.textContent = "Full rate";
      plan();
    });
    this.late = setTimeout(() => give("it did not begin in time"), BEGIN);
    // Safari and newer Chromium play HLS by themselves; others, and those that fail at it, by a script that is fetched only then.
    if (video.canPlayType("application/vnd.apple.mpegurl")) {
      video.onerror = () => current() && this.scripted(video, current, give);
      video.src = this.camera.live.hls;
      video.play().catch(() => {});
    } else {
      await this.scripted(video, current, give);
    }
  }

  async scripted(video, current, give) {
    video.onerror = null;
    let Hls;
    try {
      ({ default: Hls } = await import("/assets/hls.light.min.js"));
    } catch {
      return give("the player could not be fetched");
    }
    if (!current()) return;
    if (!Hls.isSupported()) return give("this browser plays no HLS");
    const hls = new Hls({ enableWorker: false, liveSyncDurationCount: 2, backBufferLength: 10, manifestLoadPolicy: { default: PATIENT } });
    let mended = false;
    this.hls = hls;
    hls.on(Hls.Events.ERROR, (_, problem) => {
      if (!problem.fatal || !current()) return;
      if (problem.type === Hls.ErrorTypes.MEDIA_ERROR && !mended) {
        mended = true;
        hls.recoverMediaError();
      } else {
        give(`the video could not be read (${problem.details})`);
      }
    });
    hls.on(Hls.Events.MANIFEST_PARSED, () => video.play().catch(() => {}));
    hls.loadSource(this.camera.live.hls);
    hls.attachMedia(video);
  }
}

/** The daemon answers with a list once it has a first part of the video. */
const PATIENT = {
  maxTimeToFirstByteMs: 15_000, maxLoadTimeMs: 20_000,
  timeoutRetry: { maxNumRetry: 2, retryDelayMs: 500, maxRetryDelayMs: 2000 }, errorRetry: { maxNumRetry: 4, retryDelayMs: 800, maxRetryDelayMs: 3000 },
};
