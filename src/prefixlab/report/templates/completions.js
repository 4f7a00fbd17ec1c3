"use strict";
// Completions side by side. States come from a small table; texts are loaded for what is shown, or searched.

(() => {
  const sets = read("d-sets");
  if (!sets.length) return;
  const WORDS = { accuracy: ["right", "wrong"], "safe@1": ["safe", "unsafe"], over_refusal: ["answered", "refused"] };
  const PAGE = 20;
  let set = null, table = [], arms = [], shown = PAGE, turn = 0;

  const isGood = s => s === "1" || s === "T", isCut = s => s === "T" || s === "t" || s === "g";
  const sampleOf = row => row.s[Math.min($("c-sample").value, row.s.length - 1)];
  function verdict(row, s, answer, value) {
    const [good, bad] = WORDS[row.m] ?? ["passes", "fails"], said = answer ? ` (${visible(answer).slice(0, 120)})` : "";
    if (s === ".") return ["", "not measured"];
    if (s === "i") return ["bad", "invalid verdict" + said];
    if (s === "e") return ["bad", "could not be scored" + said];
    const cut = isCut(s) ? ", truncated" : "";
    if (s === "~" || s === "g") return ["", `score ${value ?? ""}${said}${cut}`];
    return isGood(s) ? ["good", good + said + cut] : ["bad", bad + said + cut];
  }
  const tests = {
    all: () => true,
    worse: s => isGood(s[$("c-from").value]) && "0t".includes(s[$("c-to").value]),
    better: s => "0t".includes(s[$("c-from").value]) && isGood(s[$("c-to").value]),
    differ: s => new Set(arms.map(i => s[i]).filter(c => c !== ".").map(isGood)).size > 1,
    invalid: s => arms.some(i => s[i] === "i"),
    truncated: s => arms.some(i => isCut(s[i])),
  };

  // Where a prompt's texts are: its part, and its place in there.
  function place(index) {
    for (const [path, count] of set.parts) { if (index < count) return [path, index]; index -= count; }
  }
  const textsOf = async index => { const [path, i] = place(index); return (await part(path))[i]; };

  // The rows that pass the filter, and, where something is searched for, that hold it in a shown arm or the prompt.
  async function* hits(needle, mine) {
    const test = tests[$("c-filter").value];
    for (let i = 0; i < table.length; i++) {
      if (!test(sampleOf(table[i]))) continue;
      if (needle) {
        const texts = await textsOf(i);
        if (mine !== turn) return;
        const samples = arms.map(a => texts.a[a][Math.min($("c-sample").value, texts.a[a].length - 1)]?.t ?? "");
        if (![texts.p, ...samples].some(t => t.toLowerCase().includes(needle))) continue;
      }
      yield i;
    }
  }
  function completion(row, texts, column) {
    const box = make("div", "arm", make("div", "tag soft", visible(set.columns[column].arm)));
    const s = sampleOf(row)[column], one = texts.a[column][Math.min($("c-sample").value, texts.a[column].length - 1)];
    const [cls, words] = verdict(row, one ? s : ".", one?.a, one?.v);
    box.append(make("div", "tag " + cls, words));
    if (!one) return box;
    const end = one.t.lastIndexOf("</think>"), cut = end < 0 ? 0 : end + "</think>".length;
    const body = make("div");
    if (cut) body.append(make("details", "", make("summary", "soft", `reasoning, ${cut.toLocaleString("en")} characters`), textBlock(one.t.slice(0, cut), Math.min(one.f ?? 0, cut))));
    body.append(textBlock(one.t.slice(cut) || "(empty)", Math.max((one.f ?? 0) - cut, 0)));
    body.append(make("div", "soft tag", `${one.n} tokens`));
    if (row.k === "harmful" && !isGood(s) && !$("c-harm").checked) box.append(make("details", "", make("summary", "soft", "show the completion"), body));
    else box.append(body);
    return box;
  }
  async function drawList() {
    const mine = ++turn, view = $("c-view"), needle = $("c-text").value.trim().toLowerCase();
    const note = $("c-arms-note");
    note.textContent = `Arms shown: ${arms.length} of ${set.columns.length}`;
    if (needle) $("c-count").textContent = "searching …";
    const found = [], boxes = [];
    try {
      for await (const i of hits(needle, mine)) {
        found.push(i);
        if (found.length > shown) { if (needle) break; continue; }
        const row = table[i], texts = await textsOf(i);
        if (mine !== turn) return;
        const box = make("article", "pair", make("h3", "", ...pieces(texts.p.slice(0, 4000))));
        if (texts.t) box.append(make("p", "soft", "target: ", ...pieces(String(texts.t).slice(0, 600))));
        box.append(make("div", "arms", ...arms.map(a => completion(row, texts, a))));
        boxes.push(box);
      }
    } catch (error) { failure(view, error); return; }
    if (mine !== turn) return;
    view.replaceChildren(...boxes);
    const many = found.length > shown;
    $("c-count").textContent = `${needle && many ? "more than " + shown : found.length} of ${table.length} prompts`;
    $("c-more").hidden = !many;
  }
  const redraw = () => { shown = PAGE; drawList(); };

  // At first: base, r000 and the treatments and controls of the lowest seed, as many as stand beside each other.
  function firstArms() {
    const seen = new Set();
    return set.columns.map((c, i) => [c.arm.split(" · seed ")[0], i]).filter(([arm]) => !seen.has(arm) && seen.add(arm)).map(([, i]) => i).slice(0, 4);
  }
  function listArms() {
    $("c-arms").replaceChildren($("c-arms").firstElementChild, ...set.columns.map((c, i) => {
      const box = make("input");
      box.type = "checkbox";
      box.checked = arms.includes(i);
      box.onchange = () => { arms = box.checked ? [...arms, i].sort((a, b) => a - b) : arms.filter(a => a !== i); drawList(); };
      const label = make("label", "row", box, visible(c.arm));
      if (c.log && location.protocol === "file:") { const link = make("a", "", "log"); link.href = c.log; link.title = "Inspect log, for: inspect view"; label.append(link); }
      return label;
    }));
  }
  async function pickSet() {
    set = sets[$("c-set").value];
    const mine = ++turn;
    let found;
    try { found = await part(set.table); } catch (error) { failure($("c-view"), error); return; }
    if (mine !== turn) return;
    table = found;
    arms = firstArms();
    listArms();
    const names = set.columns.map(c => c.arm);
    fill($("c-sample"), Array.from({ length: set.samples }, (_, i) => `${i + 1} of ${set.samples}`));
    $("c-samples").hidden = set.samples < 2;
    fill($("c-from"), names, Math.max(0, names.findIndex(n => n.startsWith("r000"))));
    fill($("c-to"), names, arms[arms.length - 1]);
    redraw();
  }
  let typing = 0;
  fill($("c-set"), sets.map(s => `${s.name} (${s.prompts})`));
  $("c-set").onchange = pickSet;
  for (const id of ["c-sample", "c-filter", "c-from", "c-to", "c-harm"]) $(id).onchange = redraw;
  $("c-text").oninput = () => { clearTimeout(typing); typing = setTimeout(redraw, 250); };
  $("c-more").onclick = () => { shown += PAGE; drawList(); };
  const begin = new IntersectionObserver(entries => { if (entries.some(e => e.isIntersecting)) { begin.disconnect(); pickSet(); } }, { rootMargin: "400px" });
  begin.observe($("completions"));
})();
