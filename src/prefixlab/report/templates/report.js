"use strict";
// Shared by the sections of the page. Texts reach the page as text nodes only, never as HTML.

const $ = id => document.getElementById(id);
const read = id => JSON.parse($(id).textContent);
const make = (tag, cls, ...children) => { const e = document.createElement(tag); if (cls) e.className = cls; e.append(...children); return e; };

// A select's options: labels, with their indices as values.
function fill(select, labels, chosen = 0) {
  select.replaceChildren(...labels.map((text, i) => { const o = make("option", "", visible(text)); o.value = i; return o; }));
  select.value = Math.max(0, Math.min(chosen, labels.length - 1));
}

// Parts: a page opened from disk may not fetch, but it may run a script, which hands its value to prefixlabPart.
const parts = new Map(), KEPT = 60;
window.prefixlabPart = (path, value) => parts.get(path)?.done(value);
function part(path) {
  const known = parts.get(path);
  if (known) { parts.delete(path); parts.set(path, known); return known.promise; }
  if (parts.size >= KEPT) parts.delete(parts.keys().next().value);
  const entry = {};
  entry.promise = new Promise((done, failed) => {
    const script = document.createElement("script");
    entry.done = value => { done(value); script.remove(); };
    script.src = path;
    script.onerror = () => { parts.delete(path); script.remove(); failed(new Error(`${path} cannot be read. Is the report's folder complete?`)); };
    document.head.append(script);
  });
  parts.set(path, entry);
  return entry.promise;
}
const failure = (view, error) => view.replaceChildren(make("p", "bad", error.message));

// Characters that would not show, or would turn the text around them: named instead of obeyed.
const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]/g;
const code = c => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
const visible = text => String(text).replace(ODD, c => `[${code(c)}]`);
function pieces(text) {
  const found = [];
  let at = 0;
  for (const hit of text.matchAll(ODD)) {
    found.push(text.slice(at, hit.index), make("span", "odd", code(hit[0])));
    at = hit.index + hit[0].length;
  }
  found.push(text.slice(at));
  return found.filter(x => x !== "");
}

// A text of any length: the beginning at once, the rest by a click; the first `prefilled` characters underlined.
const CLIP = 4000;
function textBlock(text, prefilled = 0) {
  const box = make("div", "text"), head = Math.min(prefilled, CLIP);
  box.tabIndex = 0;
  if (head) box.append(make("mark", "", ...pieces(text.slice(0, head))));
  box.append(...pieces(text.slice(head, CLIP)));
  if (text.length > CLIP) {
    const more = make("button", "", `show all ${text.length.toLocaleString("en")} characters`);
    more.type = "button";
    more.onclick = () => { more.remove(); box.append(...pieces(text.slice(CLIP))); };
    box.append(" … ", more);
  }
  return box;
}

// Charts: drawn when they come into view, in the colours of the page, and again when light and dark change.
const charts = read("d-charts"), dark = matchMedia("(prefers-color-scheme: dark)");
function theme() {
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const text = { labelColor: ink, titleColor: ink };
  return { background: null, axis: { ...text, gridColor: line, domainColor: line, tickColor: line }, legend: text, header: text, title: { color: ink }, text: { color: ink }, view: { stroke: line } };
}
// A chart that is too wide for its place: panels below each other, then narrower ones.
function slimmer(spec, over) {
  const across = spec.columns || spec.hconcat?.length || 1;
  if (across > 1 && over > 60 * across) {
    const { hconcat, ...rest } = spec;
    return hconcat ? { ...rest, vconcat: hconcat } : { ...spec, columns: 1 };
  }
  const slim = s => {
    const made = { ...s };
    if (typeof s.width === "number") made.width = Math.max(150, s.width - Math.ceil(over / across));
    if (s.spec) made.spec = slim(s.spec);
    for (const key of ["concat", "hconcat", "vconcat"]) if (s[key]) made[key] = s[key].map(slim);
    return made;
  };
  return slim(spec);
}
function embed(box, place, spec, tries) {
  return window.vegaEmbed(place, spec, { actions: false, renderer: "svg", config: theme() }).then(() => {
    const over = (place.querySelector("svg")?.getBoundingClientRect().width ?? 0) - box.clientWidth;
    if (over > 1 && box.clientWidth && tries) return embed(box, place, slimmer(spec, over), tries - 1);
  });
}
function draw(box) {
  const { title, ...spec } = charts[box.dataset.chart], place = make("div");  // the title stands above it already
  if (box.clientWidth < 480) spec.config = { ...spec.config, axis: { ...spec.config?.axis, labelLimit: 150 }, legend: { ...spec.config?.legend, labelLimit: 110 } };
  box.dataset.drawn = "soon";
  box.replaceChildren(place);
  return embed(box, place, spec, 3)
    .then(() => { box.dataset.drawn = "yes"; })
    .catch(() => { box.replaceChildren("This chart cannot be drawn here; its SVG and its numbers are linked below."); });
}
const boxes = [...document.querySelectorAll("[data-chart]")];
const seen = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) { seen.unobserve(target); if (!target.dataset.drawn) draw(target); }
}, { rootMargin: "300px" });
boxes.forEach(box => seen.observe(box));
dark.addEventListener("change", () => boxes.filter(box => box.dataset.drawn).forEach(draw));
// The others that are not folded away are drawn in idle time, since a page that is printed cannot wait for them.
const later = window.requestIdleCallback ?? (work => setTimeout(work, 50));
function rest() {
  const next = boxes.find(box => !box.dataset.drawn && (box.checkVisibility?.() ?? true));
  if (next) draw(next).then(() => later(rest));
}
addEventListener("load", () => later(rest));
