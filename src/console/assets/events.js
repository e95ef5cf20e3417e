// The events that are kept: a list by filters, and one of them with its picture and its clip.

import { announce, ask, clock, day, duration, el, icon, moment, node, now, score, sentence, since, subscribe, swatch } from "/assets/app.js";

const at = (id) => document.getElementById(id);
const [filters, list, more, detail] = ["filters", "list", "more", "detail"].map(at);
const FIELDS = ["camera", "label", "zone", "after", "before"];
const AT_ONCE = 48;
/** A clip is shown from so long before its object was first seen. */
const AHEAD_S = 1;

const REASONS = { "first seen": "first seen", moved: "it moved", zone: "it entered or left a zone", score: "the model was surer", heartbeat: "it was still there", lost: "it was gone" };

let cursor = null;
let round = 0;
let kept = false;
/** By track id, in the order of the list. */
const shown = new Map();

// Filters stand in the address, so that a view can be sent to somebody.

const local = (time) => {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
};

function read() {
  const query = new URLSearchParams(location.search);
  for (const name of FIELDS) {
    const value = query.get(name) ?? "";
    const field = filters.elements[name];
    // The cameras may not have come yet.
    if (name === "camera" && value && ![...field.options].some((option) => option.value === value)) field.append(el("option", { value, text: value }));
    field.value = name === "after" || name === "before" ? local(value) : value;
  }
}

function asked() {
  const query = new URLSearchParams();
  for (const name of FIELDS) {
    const value = filters.elements[name].value.trim();
    if (value === "") continue;
    query.set(name, name === "after" || name === "before" ? new Date(value).toISOString() : value);
  }
  return query;
}

function remember(id, push = false) {
  const query = asked();
  if (id) query.set("id", id);
  const address = query.toString() ? `/events?${query}` : "/events";
  history[push ? "pushState" : "replaceState"]({ opened: push }, "", address);
}

let soon = 0;
filters.addEventListener("input", (event) => {
  clearTimeout(soon);
  soon = setTimeout(changed, event.target.tagName === "SELECT" ? 0 : 350);
});
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  changed();
});
filters.addEventListener("reset", () => setTimeout(changed));

function changed() {
  clearTimeout(soon);
  remember(null);
  load();
}

// The list

async function load(older = false) {
  const mine = ++round;
  const query = asked();
  at("clear").hidden = query.toString() === "";
  query.set("limit", AT_ONCE);
  if (older && cursor) query.set("cursor", cursor);
  list.setAttribute("aria-busy", "true");
  more.disabled = true;
  try {
    const { events, next } = await ask(`/api/v1/events?${query}`);
    if (mine !== round) return;
    if (!older) {
      shown.clear();
      list.replaceChildren();
    }
    const before = shown.size;
    events.forEach((object) => put(object));
    cursor = next;
    if (shown.size === 0) nothing();
    if (!older) at("sum").textContent = shown.size === 0 ? "No event" : "Each object that was followed, the newest first.";
    if (older && shown.size > before) [...shown.values()][before].tile.focus({ preventScroll: true });
    announce(older ? `${events.length} more` : `${events.length}${next ? " or more" : ""} events`);
  } catch (error) {
    if (mine !== round || error.status === 401) return;
    if (!older) {
      shown.clear();
      cursor = null;
    }
    const told = el("div", { class: "card empty" }, icon("off"), el("h2", { text: "The events could not be asked for" }), el("p", { text: sentence(error.message) }), el("button", { type: "button", text: "Try again", onclick: () => load() }));
    list.replaceChildren(told);
  } finally {
    if (mine === round) {
      list.removeAttribute("aria-busy");
      more.disabled = false;
      more.hidden = cursor === null;
    }
  }
}

more.addEventListener("click", () => load(true));

function nothing() {
  const filtered = asked().toString() !== "";
  list.replaceChildren(el("div", { class: "card empty" }, icon("list"), el("h2", { text: filtered ? "No event is like this" : "No event yet" }),
    el("p", { text: filtered ? "Take a filter away, or look at a longer time." : "An event comes with the first object that a camera shows for two looks." })));
}

/** The heading of a day and the tiles below it. */
function shelf(object) {
  const name = day(object.start_time);
  const key = new Date(object.start_time).toDateString();
  let found = [...list.children].find((child) => child.dataset.day === key);
  if (!found) {
    const heading = `day-${key.replaceAll(" ", "-")}`;
    found = el("section", { "aria-labelledby": heading }, el("h2", { class: "day", id: heading, text: name }), el("div", { class: "tiles" }));
    found.dataset.day = key;
    found.dataset.time = String(Date.parse(object.start_time));
    const after = [...list.children].find((child) => child.dataset.day && Number(child.dataset.time) < Date.parse(object.start_time));
    if (after) after.before(found);
    else list.append(found);
  }
  return found.lastChild;
}

/** Adds an object to the list, or says anew what it is. */
function put(object) {
  const old = shown.get(object.track_id);
  const tile = old?.tile ?? el("a", { class: "tile", onclick: (event) => clicked(event, object.track_id) });
  shown.set(object.track_id, { object, tile });
  const query = asked();
  query.set("id", object.track_id);
  tile.href = `/events?${query}`;
  const thumb = old?.tile.querySelector(".thumb") ?? el("span", { class: "thumb" });
  const version = `${object.snapshot}|${object.clip}|${object.end_time}`;
  if (thumb.dataset.version !== version) {
    thumb.dataset.version = version;
    const bare = swatch(object.label);
    const picture = object.snapshot && el("img", { src: address(object), alt: "", loading: "lazy", decoding: "async", onerror: (event) => event.target.replaceWith(bare) });
    thumb.replaceChildren(picture || bare);
    if (!object.end_time) thumb.append(el("span", { class: "badge left", text: "there now" }));
    if (object.clip) thumb.append(el("span", { class: "badge" }, icon("play"), "clip"));
  }
  const zones = (object.zones ?? []).map((zone) => el("span", { class: "tag", text: zone }));
  const text = el("span", { class: "text" },
    el("span", { class: "first" }, swatch(object.label), el("span", { text: object.label }), el("span", { class: "num", text: score(object.top_score) })),
    el("span", { class: "rest" }, el("span", { text: object.camera }), el("time", { datetime: object.start_time, text: clock(object.start_time) }), el("span", { text: length(object) })),
    (zones.length > 0 || object.stationary) && el("span", { class: "tags" }, object.stationary && el("span", { class: "tag", text: "resting" }), ...zones));
  tile.replaceChildren(thumb, text);
  if (old) return;
  const tiles = shelf(object);
  tile.dataset.time = String(Date.parse(object.start_time));
  const after = [...tiles.children].find((other) => Number(other.dataset.time) < Number(tile.dataset.time));
  if (after) after.before(tile);
  else tiles.append(tile);
}

/** A better picture may have taken the place of the first. */
const address = (object) => `${object.snapshot}?v=${object.end_time ? "end" : now().toString(36)}`;

const length = (object) => (object.end_time ? duration((Date.parse(object.end_time) - Date.parse(object.start_time)) / 1000) : `for ${duration(since(object.start_time))}`);

/** Whether one that has just come belongs into what is shown. */
function wanted(object) {
  const query = asked();
  const is = (name, has) => !query.has(name) || has(query.get(name));
  return is("camera", (camera) => object.camera === camera) && is("label", (label) => object.label === label) && is("zone", (zone) => (object.zones ?? []).includes(zone))
    && is("after", (time) => Date.parse(object.start_time) >= Date.parse(time)) && is("before", (time) => Date.parse(object.start_time) < Date.parse(time));
}

function came(object) {
  const known = shown.has(object.track_id);
  if (!known && !wanted(object)) return;
  if (shown.size === 0) list.replaceChildren();
  put(object);
  if (!known) announce(`${object.camera}: ${object.label}`);
  if (detail.open && open_id === object.track_id) about(object);
}

// One of them

let open_id = null;

function clicked(event, id) {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  remember(id, true);
  show(id);
}

async function show(id) {
  open_id = id;
  let object = shown.get(id)?.object;
  if (!object) {
    at("detail-title").textContent = "Event";
    at("media").replaceChildren(el("p", { class: "none", text: "Asking…" }));
    at("about").replaceChildren();
    if (!detail.open) detail.showModal();
    try {
      object = await ask(`/api/v1/events/${encodeURIComponent(id)}`);
    } catch (error) {
      if (open_id === id) at("media").replaceChildren(el("p", { class: "none", text: sentence(error.message) }));
      steps();
      return;
    }
    if (open_id !== id) return;
  }
  media(object);
  about(object);
  steps();
  if (!detail.open) detail.showModal();
}

function about(object) {
  at("detail-title").replaceChildren(swatch(object.label), ` ${object.label} `, el("span", { class: "muted", text: `on ${object.camera}` }));
  const fact = (name, text) => el("div", {}, el("dt", { text: name }), el("dd", { text }));
  const end = object.end_time ? moment(object.end_time) : "still there";
  const facts = el("dl", {}, fact("Came", moment(object.start_time)), fact("Went", end), fact("There for", length(object).replace("for ", "")), fact("Best score", score(object.top_score)),
    fact("Last score", score(object.score)), fact("Resting", object.stationary ? "yes" : "no"), fact("Last told", REASONS[object.reason] ?? object.reason ?? "–"));
  const zones = (object.zones ?? []).length > 0 ? el("div", { class: "row" }, ...object.zones.map((zone) => el("span", { class: "tag", text: zone }))) : el("p", { class: "none", text: "none" });
  const box = object.box && ["x_min", "y_min", "x_max", "y_max"].map((side) => object.box[side].toFixed(4)).join("  ");
  const links = el("div", { class: "row" }, object.clip && el("a", { href: object.clip, download: `${object.camera}-${object.track_id}.mp4`, text: "Save clip" }),
    object.snapshot && el("a", { href: object.snapshot, download: `${object.camera}-${object.track_id}.jpg`, text: "Save picture" }));
  at("about").replaceChildren(facts, el("div", { class: "group" }, el("h3", { text: "Zones it was in" }), zones),
    ...(box ? [el("div", { class: "group" }, el("h3", { text: "Last box: left, top, right, bottom" }), el("span", { class: "mono", text: box }))] : []),
    el("div", { class: "group" }, el("h3", { text: "Track" }), el("span", { class: "mono", text: object.track_id })), links);
}

function media(object) {
  const place = at("media");
  const views = [];
  if (object.clip) views.push(["Clip", () => clip(object)]);
  if (object.snapshot) views.push(["Picture", () => el("img", { src: address(object), alt: `${object.label} on ${object.camera}, ${moment(object.start_time)}`, onerror: (event) => event.target.replaceWith(el("p", { class: "none", text: "The picture is not there any more." })) })]);
  if (views.length === 0) {
    place.replaceChildren(el("p", { class: "none", text: "This event has neither a picture nor a clip. [events.snapshots] keeps pictures, record = \"events\" of a camera clips." }));
    return;
  }
  const holder = el("div");
  const buttons = views.map(([name], index) => el("button", { type: "button", text: name, "aria-pressed": "false", onclick: () => turn(index) }));
  const turn = (index) => {
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", String(at === index)));
    holder.replaceChildren(views[index][1]());
  };
  place.replaceChildren(holder, ...(views.length > 1 ? [el("div", { class: "tabs", role: "group", "aria-label": "What is shown" }, ...buttons)] : []));
  turn(0);
}

function clip(object) {
  const video = el("video", { controls: true, playsinline: true, muted: true, preload: "metadata", poster: object.snapshot ? address(object) : null, "aria-label": `Clip of ${object.label} on ${object.camera}` });
  video.muted = true;
  const start = Math.max(0, (object.clip_offset_s ?? 0) - AHEAD_S);
  video.addEventListener("loadedmetadata", () => {
    if (start > 0 && (!Number.isFinite(video.duration) || start < video.duration)) video.currentTime = start;
  }, { once: true });
  video.addEventListener("error", () => {
    const why = object.end_time ? "This browser cannot play the clip, or it is not there any more." : "The clip is being written, or this browser cannot play it.";
    video.replaceWith(el("p", { class: "none", text: why }));
  });
  video.src = object.clip;
  return video;
}

function neighbour(step) {
  const ids = [...shown.values()].sort((a, b) => Date.parse(b.object.start_time) - Date.parse(a.object.start_time)).map(({ object }) => object.track_id);
  const here = ids.indexOf(open_id);
  return here < 0 ? undefined : ids[here + step];
}

function steps() {
  at("newer").disabled = neighbour(-1) === undefined;
  at("older").disabled = neighbour(1) === undefined;
}

function step(by) {
  const id = neighbour(by);
  if (id === undefined) return;
  remember(id);
  show(id);
}

at("newer").addEventListener("click", () => step(-1));
at("older").addEventListener("click", () => step(1));
at("close").addEventListener("click", () => detail.close());
detail.addEventListener("click", (event) => event.target === detail && detail.close());
detail.addEventListener("keydown", (event) => {
  // In the player the arrows move in the clip.
  if (event.target.tagName === "VIDEO" || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
detail.addEventListener("close", () => {
  const tile = shown.get(open_id)?.tile;
  at("media").replaceChildren();
  if (open_id === null) return;
  open_id = null;
  remember(null);
  tile?.focus();
});
window.addEventListener("popstate", () => {
  read();
  const id = new URLSearchParams(location.search).get("id");
  if (id) show(id);
  else if (detail.open) detail.close();
  load();
});

// The begin

function off() {
  filters.hidden = true;
  more.hidden = true;
  at("sum").textContent = "Events are not kept.";
  const toml = '# the list on this page\n[events]\ndatabase = "/var/lib/palisade/events.sqlite"\n\n# a picture of each\n[events.snapshots]\ndir = "/var/lib/palisade/objects"\n\n# clips, of cameras with record = "events"\n[record]\ndir = "/var/lib/palisade/clips"';
  list.replaceChildren(el("div", { class: "card empty" }, icon("list"), el("h2", { text: "This node does not keep its events" }),
    el("p", { text: "They go out over MQTT and to the live page, and are forgotten. To keep them, name a database in the configuration file and start palisade anew; pictures and clips have keys of their own." }), el("pre", { text: toml })));
}

async function names() {
  try {
    const { cameras } = await ask("/api/v1/cameras");
    const select = filters.elements.camera;
    const value = select.value;
    select.replaceChildren(el("option", { value: "", text: "all" }), ...cameras.map(({ id }) => el("option", { value: id, text: id })));
    if (value && !cameras.some(({ id }) => id === value)) select.append(el("option", { value, text: value }));
    select.value = value;
    const options = (all) => [...new Set(all)].sort().map((name) => el("option", { value: name }));
    at("labels").replaceChildren(...options(cameras.flatMap(({ labels }) => labels ?? [])));
    at("zones").replaceChildren(...options(cameras.flatMap(({ zones }) => zones ?? [])));
  } catch {
    // The filters can be typed.
  }
}

read();
const info = await node();
kept = info?.history !== false;
if (kept) {
  await Promise.all([names(), load()]);
  const id = new URLSearchParams(location.search).get("id");
  if (id) show(id);
} else {
  list.removeAttribute("aria-busy");
  off();
}
subscribe({ object: (object) => kept && came(object), again: () => kept && !more.disabled && load() });
