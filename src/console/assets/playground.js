// The playground: one picture, one prompt, and everything that the model said.

import { announce, ask, copier, el, many, node, score, sentence, swatch } from "/assets/app.js";

const at = (id) => document.getElementById(id);
const [form, file, drop, preview, invite, chosen] = ["ask", "file", "drop", "preview", "invite", "chosen"].map(at);
const [prompt, go, cancel, busy, elapsed, trouble] = ["prompt", "go", "cancel", "busy", "elapsed", "trouble"].map(at);
const annotated = at("annotated");
const hot = at("hot");

/** What is asked about: `{ file }` or `{ camera }`. */
let picture = null;
let preview_url = null;
let result = null;
let running = null;

// The picture

function choose(next) {
  picture = next;
  if (preview_url) URL.revokeObjectURL(preview_url);
  preview_url = null;
  trouble.textContent = "";
  if (next.file) {
    preview_url = URL.createObjectURL(next.file);
    preview.src = preview_url;
    chosen.textContent = `${next.file.name || "Pasted picture"}, ${size(next.file.size)}`;
  } else {
    preview.src = `/live/${encodeURIComponent(next.camera)}.jpg?height=480&n=${Date.now().toString(36)}`;
    chosen.textContent = `What ${next.camera} shows at the moment it is asked`;
  }
  preview.hidden = false;
  invite.hidden = true;
  chosen.hidden = false;
  announce(chosen.textContent);
}

/** What the browser cannot show may still be a picture to the daemon: it decides. */
preview.addEventListener("error", () => {
  preview.hidden = true;
  invite.hidden = false;
});

const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

function first(list) {
  const found = [...(list ?? [])].find((one) => one.type.startsWith("image/")) ?? list?.[0];
  if (found) choose({ file: found });
  return Boolean(found);
}

file.addEventListener("change", () => {
  first(file.files);
  // The same file may be chosen again.
  file.value = "";
});
document.addEventListener("paste", (event) => {
  if (first(event.clipboardData?.files)) event.preventDefault();
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    drop.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => event.relatedTarget === null && drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  first(event.dataTransfer.files);
});
at("take").addEventListener("click", () => choose({ camera: at("camera").value }));

async function cameras() {
  try {
    const { cameras } = await ask("/api/v1/cameras");
    if (cameras.length === 0) return;
    at("camera").replaceChildren(...cameras.map(({ id }) => el("option", { value: id, text: id })));
    at("from").hidden = false;
    const wanted = new URLSearchParams(location.search).get("camera");
    if (cameras.some(({ id }) => id === wanted)) {
      at("camera").value = wanted;
      choose({ camera: wanted });
    }
  } catch {
    // A file can be chosen all the same.
  }
}

// The question

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (running) return;
  trouble.textContent = "";
  if (!picture) return complain("Choose a picture first, or take one from a camera.", file);
  if (prompt.value.trim() === "") return complain("Write what to look for, for example: detect cat; dog; car", prompt);
  const body = new FormData();
  body.append("prompt", prompt.value.trim());
  if (picture.file) body.append("image", picture.file, picture.file.name || "picture");
  else body.append("camera", picture.camera);
  running = new AbortController();
  const begun = performance.now();
  const count = setInterval(() => (elapsed.textContent = `${((performance.now() - begun) / 1000).toFixed(1)} s`), 100);
  working(true);
  announce("Looking");
  try {
    result = await ask("/api/v1/detect", { method: "POST", body, signal: running.signal });
    answer((performance.now() - begun) / 1000);
  } catch (error) {
    clear();
    if (error.name === "AbortError") trouble.textContent = "Cancelled.";
    else if (error.status === 503 && error.after) trouble.textContent = `${sentence(error.message)} Try again in ${error.after} s.`;
    else trouble.textContent = sentence(error.message);
  } finally {
    clearInterval(count);
    running = null;
    working(false);
  }
});
cancel.addEventListener("click", () => running?.abort());

function complain(text, where) {
  trouble.textContent = text;
  where.focus();
}

function working(is) {
  go.disabled = is;
  go.textContent = is ? "Looking…" : "Look";
  elapsed.textContent = "0.0 s";
  busy.hidden = cancel.hidden = !is;
  at("answer").setAttribute("aria-busy", String(is));
}

// The answer

function clear() {
  result = null;
  at("said").hidden = true;
  at("waiting").hidden = false;
}

function answer(seconds) {
  const { detections, dropped = [], annotated: drawn, latency_ms: late, raw } = result;
  annotated.src = `data:${drawn.media_type};base64,${drawn.base64}`;
  annotated.alt = detections.length > 0 ? `The picture with ${many(detections.length, "box", "boxes")}` : "The picture, with no box on it";
  hot.hidden = true;
  at("verdict").textContent = detections.length > 0 ? counted(detections) : "Nothing found";
  const model = late?.inference ?? late?.total;
  at("took").textContent = `${model === undefined ? "" : `${spoken(model)} in the model, `}${seconds.toFixed(1)} s in all`;
  at("table-box").hidden = detections.length === 0;
  at("rows").replaceChildren(...detections.map(row));
  at("left-out").hidden = dropped.length === 0;
  at("dropped").replaceChildren(...dropped.map(({ text, why }) => el("li", {}, el("code", { text }), ` ${why}`)));
  at("raw").textContent = raw === "" ? "(nothing: the answer was empty)" : raw;
  at("raw").classList.toggle("muted", raw === "");
  const hints = [];
  if (result.finish === "length") hints.push("The answer was cut: it had reached model.max_new_tokens.");
  if (detections.length === 0 && raw !== "" && dropped.length === 0) hints.push("No box is in it.");
  at("raw-hint").textContent = hints.join(" ");
  at("waiting").hidden = true;
  at("said").hidden = false;
  // On a phone the answer is below the question.
  const top = at("answer").getBoundingClientRect().top;
  if (top > window.innerHeight * 0.7) at("answer").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

const spoken = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** `2 cars, 1 person`: as many as there are, without a plural that may be wrong. */
function counted(detections) {
  const counts = new Map();
  for (const { label } of detections) counts.set(label, (counts.get(label) ?? 0) + 1);
  return [...counts].map(([label, n]) => `${n} × ${label}`).join(", ");
}

const SIDES = ["x_min", "y_min", "x_max", "y_max"];

function row(detection) {
  const { label, score: sure, box, pixels } = detection;
  const cell = (text, first) => el("td", { class: first ? "num gap" : "num", text });
  const made = el("tr", {}, el("td", { class: "name" }, swatch(label), label), el("td", { class: "num", text: score(sure) }),
    ...SIDES.map((side, index) => cell(box[side].toFixed(4), index === 0)), ...SIDES.map((side, index) => cell(String(Math.round(pixels[side])), index === 0)));
  made.addEventListener("pointerenter", () => light(box));
  made.addEventListener("pointerleave", () => light(null));
  return made;
}

/** The box that is pointed at, out of the dark. */
function light(box) {
  hot.hidden = box === null;
  if (box === null) return;
  const share = (value) => `${value * 100}%`;
  Object.assign(hot.style, { left: share(box.x_min), top: share(box.y_min), width: share(box.x_max - box.x_min), height: share(box.y_max - box.y_min) });
}

function csv() {
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const head = ["label", "score", ...SIDES, ...SIDES.map((side) => `${side}_px`)];
  const lines = result.detections.map(({ label, score, box, pixels }) => [quoted(label), score, ...SIDES.map((side) => box[side]), ...SIDES.map((side) => pixels[side])]);
  return [head, ...lines].map((line) => line.join(",")).join("\n");
}

function json() {
  const { annotated: _, ...rest } = result;
  return JSON.stringify(rest, null, 2);
}

function save() {
  el("a", { href: annotated.src, download: "palisade.jpg" }).click();
}

at("copies").append(copier("Copy what it wrote", () => result.raw), copier("Copy as JSON", json), copier("Copy table as CSV", csv),
  el("button", { type: "button", text: "Save picture", onclick: save }));

node();
cameras();
// This page needs no stream: it is connected when it is answered.
const check = async () => {
  const link = at("link");
  try {
    await ask("/api/v1/info", { signal: AbortSignal.timeout(8000) });
    link.dataset.state = "open";
    at("link-text").textContent = "connected";
  } catch {
    link.dataset.state = "lost";
    at("link-text").textContent = "no connection";
  }
};
check();
setInterval(() => !document.hidden && check(), 15_000);
