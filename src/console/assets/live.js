// The live page: a card per camera, kept true by the stream of events.

import { announce, ask, clock, duration, el, icon, many, moment, node, now, score, sentence, since, subscribe, swatch } from "/assets/app.js";
import { Screen, plan } from "/assets/screen.js";

/** How a state is named, how bad it is, and whether pictures may be expected. */
const STATES = {
  running: { name: "Running", tone: "ok", shows: true },
  connecting: { name: "Connecting", tone: "idle", shows: false, veil: "Connecting", icon: "camera" },
  stalled: { name: "Stalled", tone: "warn", shows: false, veil: "No pictures" },
  backoff: { name: "Trying again", tone: "warn", shows: false, veil: "Not reached" },
  failed: { name: "Failed", tone: "bad", shows: false, veil: "Failed" },
  disabled: { name: "Off", tone: "idle", shows: false, veil: "Turned off", timeless: true },
};
const UNKNOWN = { name: "Unknown", tone: "idle", shows: true };

/** Events that a card shows. */
const SHOTS = 6;
/** Between two questions after the node. */
const NODE = 10_000;

const place = document.getElementById("cameras");
const cards = new Map();
let info = null;
let serial = 0;

/** One camera: makes its card and keeps it true. */
class Card {
  constructor(camera) {
    const id = camera.id;
    this.id = id;
    this.shots = new Map();
    this.state = null;
    this.screen = new Screen(camera);
    const key = `c${++serial}`;

    this.chip = el("span", { class: "chip" }, el("span", { class: "dot", "aria-hidden": "true" }), el("span"));
    this.why = el("p", { class: "why" });
    this.name = el("h2", { text: id, id: `${key}-name` });

    this.field = el("textarea", {
      rows: 1, maxlength: 2000, autocomplete: "off", autocapitalize: "off", spellcheck: "false", enterkeyhint: "done", id: `${key}-prompt`,
      "aria-describedby": `${key}-trouble`, oninput: () => this.typed(), onkeydown: (event) => this.pressed(event),
    });
    this.fixed = el("p", { class: "fixed", hidden: true });
    this.save = el("button", { type: "submit", class: "main", text: "Save" });
    this.revert = el("button", { type: "button", text: "Revert", onclick: () => this.reverted() });
    this.doing = el("div", { class: "row", hidden: true }, this.save, this.revert, el("span", { class: "hint", text: "Enter saves, Escape reverts" }));
    this.trouble = el("p", { class: "trouble", role: "alert", id: `${key}-trouble` });
    this.promptLabel = el("label", { for: `${key}-prompt`, class: "label", text: "Looks for" });
    const tryOut = el("a", { href: `/playground?camera=${encodeURIComponent(id)}`, class: "hint", "aria-label": `Try a prompt on a picture of ${id}`, text: "Try a prompt" });
    this.prompt = el("form", { class: "prompt field", onsubmit: (event) => this.saved(event) }, el("div", { class: "bar" }, this.promptLabel, tryOut), this.field, this.fixed, this.doing, this.trouble);

    this.toggle = el("button", { type: "button", class: "switch", role: "switch", "aria-label": `Look at ${id}`, text: "Look", onclick: () => this.switched() });
    this.switchTrouble = el("p", { class: "trouble", role: "alert" });
    this.objects = el("ul", { class: "objects" });
    this.none = el("p", { class: "none" });
    this.count = el("span", { class: "muted num" });
    this.strip = el("div", { class: "strip" });
    this.recent = el("section", { class: "recent", hidden: true }, el("div", { class: "bar" }, el("h3", { text: "Last events" }), this.all(id)), this.strip);
    this.rates = el("dl", { class: "rates" });
    this.raw = el("pre", { tabindex: "0", "aria-label": "Last answer" });
    this.answer = el("details", { hidden: true }, el("summary", { text: "Last answer of the model" }), this.raw);

    const side = el("div", { class: "side" },
      el("div", { class: "group" }, el("div", { class: "who" }, this.name, this.chip, this.screen.tools), this.why),
      this.prompt,
      el("section", { class: "group" },
        el("div", { class: "detect" }, el("div", { class: "row" }, el("h3", { text: "Now" }), this.count), this.toggle), this.switchTrouble, this.objects, this.none),
      this.rates, this.answer);
    this.element = el("article", { class: "card camera", "aria-labelledby": `${key}-name` }, el("div", { class: "inside" }, this.screen.element, side, this.recent));
    this.element.addEventListener("pointerenter", () => this.screen.focus());
    this.element.addEventListener("focusin", () => this.screen.focus());
    this.update(camera);
  }

  all(id) {
    return el("a", { href: `/events?camera=${encodeURIComponent(id)}`, class: "hint", "aria-label": `All events of ${id}`, text: "All" });
  }

  update(camera) {
    this.camera = camera;
    const state = STATES[camera.state] ?? UNKNOWN;
    if (this.state !== camera.state) {
      if (this.state !== null) announce(`${camera.id}: ${state.name}${camera.reason ? `, ${camera.reason}` : ""}`);
      this.state = camera.state;
    }
    this.chip.dataset.tone = state.tone;
    this.chip.dataset.state = camera.state;
    this.chip.lastChild.textContent = state.name;
    this.screen.update(camera, state);
    this.asks(camera);
    this.looks(camera);
    this.sees(camera);
    this.figures(camera);
    this.answer.hidden = typeof camera.raw !== "string";
    const raw = camera.raw === "" ? "(nothing)" : camera.raw;
    if (raw && this.raw.textContent !== raw) this.raw.textContent = raw;
    this.tick();
  }

  /** What grows with time alone. */
  tick() {
    const { camera } = this;
    const state = STATES[camera.state] ?? UNKNOWN;
    const told = camera.reason ? sentence(camera.reason) : "";
    const length = camera.since ? `Since ${moment(camera.since)} (${duration(since(camera.since))}).` : "";
    // Where there is no picture the reason stands in its place.
    const why = state.shows ? told : "";
    if (this.why.textContent !== why) this.why.textContent = why;
    this.why.hidden = why === "";
    this.screen.tick(state, told, length);
    for (const [place, start] of this.ages ?? []) place.textContent = duration(since(start));
  }

  // The prompt

  asks(camera) {
    this.field.hidden = !camera.prompt_editable;
    this.fixed.hidden = camera.prompt_editable;
    this.fixed.textContent = camera.prompt;
    if (camera.prompt_editable) this.promptLabel.htmlFor = this.field.id;
    if (this.dirty() && this.base !== undefined) return;
    this.base = camera.prompt;
    if (this.field.value !== camera.prompt) this.field.value = camera.prompt;
    this.fit();
  }

  dirty() {
    return this.field.value.trim() !== (this.base ?? this.field.value).trim();
  }

  typed() {
    // A prompt is one line; what is pasted may have several.
    if (this.field.value.includes("\n")) this.field.value = this.field.value.replace(/\s*\n\s*/g, " ");
    this.doing.hidden = !this.dirty();
    this.complain("");
    this.fit();
  }

  /** As high as its text, where the browser does not see to that. */
  fit() {
    if (CSS.supports("field-sizing", "content")) return;
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight + 2}px`;
  }

  complain(text) {
    this.trouble.textContent = text;
    if (text) this.field.setAttribute("aria-invalid", "true");
    else this.field.removeAttribute("aria-invalid");
  }

  pressed(event) {
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      if (this.dirty()) this.prompt.requestSubmit();
    } else if (event.key === "Escape") {
      this.reverted();
    }
  }

  reverted() {
    const inside = this.doing.contains(document.activeElement);
    this.base = this.camera.prompt;
    this.field.value = this.base;
    this.doing.hidden = true;
    this.complain("");
    this.fit();
    if (inside) this.field.focus();
  }

  async saved(event) {
    event.preventDefault();
    if (!this.dirty() || this.save.disabled) return;
    const prompt = this.field.value.trim();
    this.save.disabled = true;
    try {
      const camera = await put(`/api/v1/cameras/${encodeURIComponent(this.id)}/prompt`, { prompt });
      const inside = this.doing.contains(document.activeElement);
      this.base = camera.prompt;
      this.field.value = camera.prompt;
      this.doing.hidden = true;
      this.complain("");
      if (inside) this.field.focus();
      this.update(camera);
      announce(`${this.id} now looks for: ${camera.prompt}`);
    } catch (error) {
      this.complain(sentence(error.message));
    } finally {
      this.save.disabled = false;
    }
  }

  // Whether it is looked at

  looks(camera) {
    this.toggle.setAttribute("aria-checked", String(camera.detect));
    this.toggle.hidden = camera.state === "disabled" || (!camera.detect_editable && camera.detect);
    this.toggle.disabled = !camera.detect_editable || this.switching === true;
  }

  async switched() {
    this.switching = true;
    this.toggle.disabled = true;
    this.switchTrouble.textContent = "";
    try {
      const camera = await put(`/api/v1/cameras/${encodeURIComponent(this.id)}/detect`, { on: !this.camera.detect });
      this.switching = false;
      this.update(camera);
      this.toggle.focus();
    } catch (error) {
      this.switching = false;
      this.toggle.disabled = false;
      this.switchTrouble.textContent = sentence(error.message);
    }
  }

  // What is there

  sees(camera) {
    const objects = [...(camera.objects ?? [])].sort((a, b) => Date.parse(b.start_time) - Date.parse(a.start_time));
    this.ages = [];
    this.objects.replaceChildren(...objects.map((object) => {
      const age = el("span", { class: "num muted", title: `since ${moment(object.start_time)}` });
      this.ages.push([age, object.start_time]);
      const tags = [object.stationary && "resting", ...(object.zones ?? [])].filter(Boolean);
      const name = el("span", { class: "name" }, el("span", { text: object.label }), ...tags.map((tag) => el("span", { class: "tag", text: tag })));
      return el("li", {}, swatch(object.label), name, el("span", { class: "num", text: score(object.score), title: "score" }), age);
    }));
    this.objects.hidden = objects.length === 0;
    this.count.textContent = objects.length > 1 ? String(objects.length) : "";
    this.none.hidden = objects.length > 0;
    const state = STATES[camera.state] ?? UNKNOWN;
    if (camera.state === "disabled") this.none.textContent = "Not opened: enabled = false in the configuration.";
    else if (!camera.detect) this.none.textContent = "Pictures are shown, and not looked at.";
    else if (!state.shows) this.none.textContent = "Nothing can be seen.";
    else this.none.textContent = camera.last_look ? "Nothing of what is asked for is there." : "Not looked at yet.";
  }

  figures(camera) {
    const fact = (name, text, title) => el("div", { title }, el("dt", { text: name }), el("dd", { text }));
    const rate = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} /s`;
    const ms = (value) => (value >= 10_000 ? `${(value / 1000).toFixed(1)} s` : `${Math.round(value)} ms`);
    const facts = [];
    if (typeof camera.fps === "number") facts.push(fact("Pictures", rate(camera.fps), "pictures that come from the camera"));
    if (typeof camera.looks_per_s === "number") facts.push(fact("Looks", rate(camera.looks_per_s), "pictures that the model looks at"));
    const late = camera.latency_ms;
    if (late) facts.push(fact("A look takes", ms(late.total), `${ms(late.queue)} waiting, ${ms(late.inference)} in the model`));
    if (camera.last_look) facts.push(fact("Last look", clock(camera.last_look)));
    if (camera.frame) facts.push(fact("Size", `${camera.frame.width}\u202f×\u202f${camera.frame.height}`));
    if (camera.dropped > 0) facts.push(fact("Passed over", String(camera.dropped), "pictures that a newer one took the place of"));
    if (camera.reconnects > 0) facts.push(fact("Reconnects", String(camera.reconnects)));
    this.rates.replaceChildren(...facts);
    this.rates.hidden = facts.length === 0;
  }

  // What has been

  /** An object that came, changed or went. */
  happened(object) {
    let shot = this.shots.get(object.track_id);
    if (!shot) {
      const oldest = [...this.shots.values()].map((shot) => shot.start).sort((a, b) => a - b)[0];
      const start = Date.parse(object.start_time);
      if (this.shots.size >= SHOTS && start < oldest) return;
      shot = { start, element: el("a", { class: "shot" }), thumb: el("span", { class: "thumb" }), label: el("span"), square: el("span"), time: el("time") };
      shot.element.append(shot.thumb, el("span", { class: "cap" }, shot.square, shot.label), shot.time);
      this.shots.set(object.track_id, shot);
      const after = [...this.shots.values()].filter((other) => other.start > start).sort((a, b) => a.start - b.start)[0];
      if (after) after.element.after(shot.element);
      else this.strip.prepend(shot.element);
    }
    shot.element.href = info?.history ? `/events?id=${encodeURIComponent(object.track_id)}` : "#main";
    shot.label.textContent = object.label;
    shot.square.replaceWith((shot.square = swatch(object.label)));
    shot.time.textContent = moment(object.start_time);
    shot.time.dateTime = object.start_time;
    // A better picture takes the place of the first under the same address.
    const version = `${object.snapshot}|${object.end_time ? "end" : Math.round(object.top_score * 20)}`;
    if (shot.version !== version) {
      shot.version = version;
      thumbnail(shot.thumb, object);
    }
    const all = [...this.shots.entries()].sort(([, a], [, b]) => b.start - a.start);
    for (const [id, old] of all.slice(SHOTS)) {
      old.element.remove();
      this.shots.delete(id);
    }
    this.recent.hidden = false;
  }

  async remember() {
    if (!info?.history) return;
    try {
      const { events } = await ask(`/api/v1/events?camera=${encodeURIComponent(this.id)}&limit=${SHOTS}`);
      events.reverse().forEach((object) => this.happened(object));
    } catch {
      // The strip is an extra; the stream goes on filling it.
    }
  }

  gone() {
    this.screen.close();
    this.element.remove();
  }
}

/** The object's picture, or its colour where there is none. */
function thumbnail(place, object) {
  const bare = () => place.replaceChildren(swatch(object.label));
  if (!object.snapshot) return bare();
  const image = new Image();
  image.alt = "";
  image.decoding = "async";
  image.onload = () => place.replaceChildren(image);
  // An event may be here before it is written down.
  let again = true;
  image.onerror = () => {
    bare();
    if (again) setTimeout(() => (image.src = `${object.snapshot}?v=${now().toString(36)}`), 2000);
    again = false;
  };
  image.src = `${object.snapshot}?v=${now().toString(36)}`;
  if (!place.firstChild) bare();
}

const put = (path, body) => ask(path, { method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

function summary() {
  const all = [...cards.values()].map((card) => card.camera);
  const trouble = all.filter((camera) => ["stalled", "backoff", "failed"].includes(camera.state)).length;
  const seen = all.reduce((sum, camera) => sum + (camera.objects?.length ?? 0), 0);
  const parts = [many(all.length, "camera")];
  if (trouble > 0) parts.push(`${trouble} without pictures`);
  parts.push(seen === 0 ? "nothing there" : `${many(seen, "object")} there`);
  const text = parts.join(" · ");
  const place = document.getElementById("sum");
  if (place.textContent !== text) place.textContent = text;
}

function show(camera) {
  const card = cards.get(camera.id);
  if (card) card.update(camera);
  else {
    const made = new Card(camera);
    cards.set(camera.id, made);
    if (cards.size === 1) place.replaceChildren(made.element);
    else place.append(made.element);
    place.classList.toggle("one", cards.size === 1);
    made.remember();
    plan();
  }
  summary();
}

function forget(id) {
  const card = cards.get(id);
  if (!card) return;
  card.gone();
  cards.delete(id);
  place.classList.toggle("one", cards.size === 1);
  if (cards.size === 0) nobody();
  else {
    plan();
    summary();
  }
}

function nobody() {
  document.getElementById("sum").textContent = "No camera yet";
  const toml = '[[camera]]\nid = "gate"\nuri = "rtsp://192.168.1.20:554/h264"\nprompt = "detect person; car"';
  place.classList.add("one");
  place.replaceChildren(el("div", { class: "card empty" }, icon("camera"), el("h2", { text: "There is no camera to watch" }),
    el("p", { text: "Cameras stand in the configuration file. Add one, check the file with palisade check, then systemctl reload palisade:" }), el("pre", { text: toml })));
}

async function begin() {
  try {
    info = await node();
    const { cameras } = await ask("/api/v1/cameras");
    for (const [id, card] of cards) if (!cameras.some((camera) => camera.id === id)) (card.gone(), cards.delete(id));
    cameras.forEach(show);
    if (cameras.length === 0) nobody();
  } catch (error) {
    if (error.status === 401) return;
    if (cards.size === 0) {
      document.getElementById("sum").textContent = "";
      place.classList.add("one");
      place.replaceChildren(el("div", { class: "card empty" }, icon("off"), el("h2", { text: "The cameras could not be asked for" }), el("p", { text: sentence(error.message) }),
        el("button", { type: "button", text: "Try again", onclick: begin })));
    }
  } finally {
    place.removeAttribute("aria-busy");
  }
}

await begin();
subscribe({
  camera: show,
  gone: ({ id }) => forget(id),
  object: (object) => cards.get(object.camera)?.happened(object),
  again: async () => {
    await begin();
    for (const card of cards.values()) {
      card.screen.restart();
      card.remember();
    }
  },
});
setInterval(() => {
  if (document.hidden) return;
  for (const card of cards.values()) card.tick();
}, 1000);
setInterval(() => !document.hidden && node().then((told) => (info = told ?? info)), NODE);
