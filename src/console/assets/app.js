// What the pages share: asking the daemon, its stream of events, the head of the page, and making elements.
// Labels and answers come from cameras and models: text goes into the page as text, never as markup.

/** An element: `class`, `text`, `on…` handlers and properties that elements have; anything else becomes an attribute. */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key === "text") made.textContent = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SHAPES = {
  auto: "M12 3a9 9 0 1 0 0 18z M12 3a9 9 0 0 1 0 18",
  light: "M12 8a4 4 0 1 0 0 8a4 4 0 0 0 0-8z M12 2v2 M12 20v2 M4.2 4.2l1.4 1.4 M18.4 18.4l1.4 1.4 M2 12h2 M20 12h2 M4.2 19.8l1.4-1.4 M18.4 5.6l1.4-1.4",
  dark: "M20.5 14.2A8.5 8.5 0 0 1 9.8 3.5a8.5 8.5 0 1 0 10.7 10.7z",
  off: "M3 3l18 18 M10 6h4l1.5 2H19a2 2 0 0 1 2 2v7 M17 19H5a2 2 0 0 1-2-2v-7a2 2 0 0 1 2-2h1 M14.5 15.5a3.5 3.5 0 0 1-5-5",
  camera: "M4 8h3.5l1.5-2h6l1.5 2H20a1 1 0 0 1 1 1v9a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V9a1 1 0 0 1 1-1z M12 10a3.5 3.5 0 1 0 0 7a3.5 3.5 0 0 0 0-7z",
  full: "M4 9V4h5 M20 9V4h-5 M4 15v5h5 M20 15v5h-5",
  play: "M7 4.5v15l12-7.5z",
  list: "M4 6h16 M4 12h16 M4 18h10",
};

/** A small picture of lines; what it means stands beside it. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

/** What the daemon refused, in its own sentence. */
export class Refused extends Error {
  constructor(sentence, status, after) {
    super(sentence);
    this.status = status;
    this.after = after;
  }
}

/** Sentences are written without a dot at their end and in lower case, for logs. */
export function sentence(text) {
  const trimmed = String(text).trim();
  if (trimmed === "") return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?…]$/.test(trimmed) ? "" : ".");
}

let ahead = 0;

/** The daemon's clock in milliseconds: a phone's may be minutes off. */
export const now = () => Date.now() + ahead;

/** Asks, and gives the JSON of the answer. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("palisade does not answer", 0);
  }
  const date = Date.parse(response.headers.get("date") ?? "");
  // The header is in whole seconds.
  if (Math.abs(date + 500 - Date.now()) > 2000) ahead = date + 500 - Date.now();
  else if (!Number.isNaN(date)) ahead = 0;
  if (response.status === 401) {
    location.assign("/login");
    throw new Refused("a token is needed", 401);
  }
  const text = await response.text();
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // Told below, by the status.
  }
  if (!response.ok) {
    const said = typeof body?.error === "string" ? body.error : `palisade answered ${response.status} ${response.statusText}`.trim();
    throw new Refused(said, response.status, Number(response.headers.get("retry-after")) || null);
  }
  if (body === null) throw new Refused("palisade answered with something that is no JSON", response.status);
  return body;
}

/** The same colour that the label has on pictures: src/annotate/colour.rs. */
export function colour(label) {
  let hash = 0x811cab13;
  for (const byte of new TextEncoder().encode(label)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  const hue = ((hash * 0.618033988749895) % 1) * 6;
  const value = hash & 0x100 ? 0.82 : 1;
  const channel = (n) => {
    const k = (n + hue) % 6;
    return Math.round((value - value * 0.82 * Math.min(Math.max(Math.min(k, 4 - k), 0), 1)) * 255);
  };
  return `rgb(${channel(5)} ${channel(3)} ${channel(1)})`;
}

/** A square in the label's colour. */
export function swatch(label) {
  const made = el("span", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = colour(label);
  return made;
}

/** `12 s`, `3 min`, `2 h 5 min`, `4 d 2 h`. */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  const pair = (big, unit, small, rest) => (small ? `${big} ${unit} ${small} ${rest}` : `${big} ${unit}`);
  if (s < 600) return pair(Math.floor(s / 60), "min", s % 60, "s");
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return pair(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "min");
  return pair(Math.floor(s / 86400), "d", Math.floor((s % 86400) / 3600), "h");
}

/** Seconds since a time of the daemon. */
export const since = (time) => (now() - Date.parse(time)) / 1000;

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short" });

/** The time of day here. */
export const clock = (time) => CLOCK.format(new Date(time));

/** `Today`, `Yesterday`, or the date. */
export function day(time) {
  const start = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  const days = Math.round((start(new Date(now())) - start(new Date(time))) / 86_400_000);
  if (days === 0) return "Today";
  if (days === 1) return "Yesterday";
  return DAY.format(new Date(time));
}

/** The time of day, and the date where it is another; within a sentence. */
export function moment(time) {
  const name = day(time);
  if (name === "Today") return clock(time);
  return `${name === "Yesterday" ? "yesterday" : name}, ${clock(time)}`;
}

/** `1 object`, `2 objects`. */
export const many = (n, one, more = `${one}s`) => `${n} ${n === 1 ? one : more}`;

/** Two digits, as on pictures. */
export const score = (value) => (typeof value === "number" ? value.toFixed(2) : "–");

/** Read out by screen readers, once. */
export function announce(text) {
  const place = document.getElementById("announcer");
  if (place) place.textContent = text;
}

/** Copies; browsers offer their clipboard to secure pages alone, and the console is often plain HTTP. */
async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) return navigator.clipboard.writeText(text);
  const field = el("textarea", { class: "unseen", readonly: true });
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("not copied");
}

/** A button that copies what `text` gives at that moment. */
export function copier(name, text) {
  const button = el("button", { type: "button", text: name });
  let back = 0;
  button.addEventListener("click", async () => {
    clearTimeout(back);
    try {
      await copy(text());
      button.textContent = "Copied";
      announce("Copied");
    } catch {
      button.textContent = "Not copied";
    }
    back = setTimeout(() => (button.textContent = name), 1600);
  });
  return button;
}

/** `CLOSED` of EventSource. */
const CLOSED = 2;
/** Nothing for so long: is it still there? */
const SILENT = 20_000;
/** A page that nobody sees gives its connection back after so long. */
const UNSEEN = 30_000;

/**
 * The stream of events, for as long as the page is seen. `handlers` has `camera`, `gone`, `object`, and `state`, which is told `open`, `lost`
 * or `wait`, and `again` when a connection is back.
 */
export function subscribe(handlers) {
  let source = null;
  let heard = 0;
  let pause = 1000;
  let retry = 0;
  let asleep = 0;
  let opened = false;
  let state = "wait";
  const tell = (next) => {
    if (next === state) return;
    state = next;
    showLink(next);
    handlers.state?.(next);
  };
  const close = () => {
    clearTimeout(retry);
    source?.close();
    source = null;
  };
  const lost = () => {
    close();
    tell("lost");
    retry = setTimeout(open, pause);
    pause = Math.min(pause * 1.7, 10_000);
  };
  const open = async () => {
    close();
    if (opened === false || state === "lost") {
      // A stream does not say why it was refused; this does, and leads to where to log in.
      try {
        await ask("/api/v1/info", { signal: AbortSignal.timeout(8000) });
      } catch (error) {
        if (error.status !== 401) lost();
        return;
      }
    }
    close();
    source = new EventSource("/api/v1/stream");
    heard = Date.now();
    source.onopen = () => {
      heard = Date.now();
      pause = 1000;
      tell("open");
      if (opened) handlers.again?.();
      opened = true;
    };
    source.onerror = () => {
      if (source?.readyState === CLOSED || state === "open") lost();
    };
    for (const kind of ["camera", "gone", "object"]) {
      source.addEventListener(kind, (event) => {
        heard = Date.now();
        let data;
        try {
          data = JSON.parse(event.data);
        } catch {
          return;
        }
        handlers[kind]?.(data);
      });
    }
  };
  setInterval(async () => {
    if (!source || state !== "open" || Date.now() - heard < SILENT) return;
    try {
      await ask("/api/v1/info", { signal: AbortSignal.timeout(5000) });
      heard = Date.now();
    } catch {
      lost();
    }
  }, 5000);
  document.addEventListener("visibilitychange", () => {
    clearTimeout(asleep);
    if (document.hidden) asleep = setTimeout(close, UNSEEN);
    else if (!source && state !== "lost") open();
    else if (state === "lost") {
      pause = 1000;
      open();
    }
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => event.persisted && open());
  open();
}

let lostAt = 0;

/** Of the page's own connection. */
function showLink(state) {
  const link = document.getElementById("link");
  const banner = document.getElementById("banner");
  link.dataset.state = state;
  document.body.classList.toggle("cut", state === "lost");
  document.getElementById("link-text").textContent = { open: "connected", lost: "no connection", wait: "connecting" }[state];
  if (state === "lost" && banner.hidden) {
    lostAt = Date.now();
    banner.textContent = `No connection to palisade since ${clock(lostAt)}. What you see is from then; it is tried again by itself.`;
    banner.hidden = false;
    announce("No connection to palisade. It is tried again.");
  } else if (state === "open" && !banner.hidden) {
    banner.hidden = true;
    announce("Connected to palisade again.");
  }
}

const THEMES = ["auto", "light", "dark"];

function theme() {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const show = () => {
    const is = root.dataset.theme ?? "auto";
    button.replaceChildren(icon(is), el("span", { text: { auto: "Auto", light: "Light", dark: "Dark" }[is] }));
    button.setAttribute("aria-label", `Colours: ${is === "auto" ? "as the system" : is}`);
    button.title = "Colours: as the system, light, dark";
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "auto") localStorage.removeItem("palisade.theme");
      else localStorage.setItem("palisade.theme", next);
    } catch {
      // Not kept, then.
    }
    show();
  });
  show();
}

/** Where no token is asked for, /login leads away from itself. */
async function logout() {
  try {
    const response = await fetch("/login", { redirect: "manual", cache: "no-store" });
    document.getElementById("logout").hidden = response.type === "opaqueredirect" || !response.ok;
  } catch {
    // Tried with the next page.
  }
}

/** What node this is. Gives what `/api/v1/info` said, or null. */
export async function node() {
  const place = document.getElementById("facts");
  let info;
  try {
    info = await ask("/api/v1/info");
  } catch {
    return null;
  }
  if (!place) return info;
  const fact = (name, text, title, tone) => el("div", {}, el("dt", { text: name }), el("dd", { text, title, "data-tone": tone }));
  const facts = [];
  if (info.node) facts.push(fact("Node", info.node));
  facts.push(fact("Model", info.device ? `${info.model} on ${info.device}` : info.model));
  if (info.mqtt?.enabled) {
    const waiting = info.mqtt.outbox > 0 ? `, ${info.mqtt.outbox} waiting` : "";
    facts.push(fact("MQTT", (info.mqtt.connected ? "connected" : "not connected") + waiting, null, info.mqtt.connected ? null : "warn"));
  }
  facts.push(fact("Up", duration(info.uptime_s), `palisade ${info.version}, started ${moment(info.started)}`));
  place.replaceChildren(...facts);
  return info;
}

theme();
logout();
