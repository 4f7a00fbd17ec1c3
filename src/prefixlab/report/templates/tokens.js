"use strict";
// The heat map: one held-out sample's tokens under one text, shaded by one quantity of one model, or by a difference.

(() => {
  const samples = read("d-tokens");
  if (!samples.length) return;
  const NAMES = {
    loss: ["loss", "nats"], entropy: ["entropy", "nats"], rank: ["rank of the token", "0 is the most likely"], kl: ["KL to the base", "nats"],
    logit_gradient: ["logit gradient ‖p − y‖", "at most 1.42"], input_gradient: ["input gradient", "norm"], contribution: ["position contribution", "norm"],
    influence: ["influence share", "of the sample's gradient"], token_gradient: ["token-loss gradient", "norm"], token_influence: ["token-loss influence", "share"],
  };
  const FULL = { loss: 8, entropy: 4, kl: 2, logit_gradient: 1.42, rank: 100 };  // fixed, so that samples compare
  const view = $("t-view");
  let current = null, drawing = 0, at = -1, values = [];

  const renderings = () => Object.keys(samples[$("t-sample").value].parts);
  const spelled = name => name === "r000" ? "no prefix" : `prefix: ${name}`;
  const series = (arm, what) => { const [scale, whole] = arm[what]; return whole.map(x => x * scale); };

  function pickSample() {
    const old = $("t-text").selectedOptions[0]?.textContent, names = renderings().map(spelled);
    fill($("t-text"), names, Math.max(0, names.indexOf(old)));
    load();
  }
  async function load() {
    const mine = ++drawing, path = samples[$("t-sample").value].parts[renderings()[$("t-text").value]];
    try {
      const found = await part(path);
      if (mine !== drawing) return;
      current = found;
    } catch (error) { failure(view, error); return; }
    const names = current.arms.map(a => a[0]);
    const keep = (select, list) => { const old = select.selectedOptions[0]?.textContent; fill(select, list, Math.max(0, list.indexOf(old))); };
    keep($("t-arm"), names);
    keep($("t-minus"), ["nothing", ...names]);
    pickArm();
  }
  function pickArm() {
    const old = $("t-what").selectedOptions[0]?.dataset.what, second = $("t-minus").value - 1;
    const shared = Object.keys(current.arms[$("t-arm").value][1]).filter(q => second < 0 || q in current.arms[second][1]);
    fill($("t-what"), shared.map(q => NAMES[q][0]), Math.max(0, shared.indexOf(old)));
    [...$("t-what").options].forEach((o, i) => { o.dataset.what = shared[i]; });
    paint();
  }
  function paint() {
    const arm = current.arms[$("t-arm").value], second = $("t-minus").value - 1, what = $("t-what").selectedOptions[0].dataset.what;
    values = series(arm[1], what);
    if (second >= 0) { const less = series(current.arms[second][1], what); values = values.map((x, i) => x - less[i]); }
    const largest = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0), top = (FULL[what] ?? 0) * (second >= 0 ? .5 : 1) || largest || 1;
    view.replaceChildren(...current.tokens.map((text, i) => {
      const e = make("span", "tok" + (current.spans[i] === "prefix" ? " prefix" : ""), visible(text).replace(/\n/g, "\u21b5\n"));
      const share = .75 * Math.min(Math.abs(values[i]) / top, 1);
      e.style.background = `rgba(var(${values[i] < 0 ? "--low" : "--high"}), ${share.toFixed(3)})`;
      e.dataset.i = i;
      return e;
    }));
    $("t-prompt").textContent = current.prompt ? "Prompt: " + visible(current.prompt).slice(0, 600) : "";
    const mean = values.reduce((a, b) => a + b, 0) / values.length, bar = make("span", "legend");
    bar.style.background = second >= 0 ? "linear-gradient(90deg, rgba(var(--low), .75), rgba(var(--high), 0), rgba(var(--high), .75))" : "linear-gradient(90deg, rgba(var(--high), 0), rgba(var(--high), .75))";
    $("t-note").replaceChildren(`${values.length} tokens with loss, mean ${mean.toFixed(3)} (${NAMES[what][1]}). Shades:`, bar, `${second >= 0 ? (-top).toPrecision(3) : 0} to ${top.toPrecision(3)}.`);
    at = -1;
    $("t-at").textContent = "Point at a token, or move with the arrow keys, for its numbers.";
  }
  const short = x => Math.abs(x) >= 100 || Number.isInteger(x) ? x.toFixed(0) : Number(x.toPrecision(3)).toString();
  function show(i) {
    if (i < 0 || i >= current.tokens.length) return;
    view.children[at]?.classList.remove("at");
    at = i;
    view.children[at].classList.add("at");
    const arm = current.arms[$("t-arm").value];
    const numbers = Object.entries(arm[1]).map(([q, [scale, whole]]) => `${NAMES[q][0]} ${short(whole[i] * scale)}`);
    const difference = $("t-minus").value > 0 ? ` Difference shown: ${short(values[i])}.` : "";
    $("t-at").textContent = `Token ${i + 1} of ${current.tokens.length}, "${visible(current.tokens[i])}" (${current.spans[i]}), ${arm[0]}: ${numbers.join(", ")}.${difference}`;
  }
  view.onpointerover = event => { const i = event.target.dataset?.i; if (i !== undefined) show(Number(i)); };
  view.onclick = view.onpointerover;
  view.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(current.tokens.length - 1, at + step)));
    view.children[at].scrollIntoView({ block: "nearest" });
  };
  fill($("t-sample"), samples.map(s => s.name));
  $("t-sample").onchange = pickSample;
  $("t-text").onchange = load;
  $("t-arm").onchange = $("t-minus").onchange = pickArm;
  $("t-what").onchange = paint;
  const begin = new IntersectionObserver(entries => { if (entries.some(e => e.isIntersecting)) { begin.disconnect(); pickSample(); } }, { rootMargin: "400px" });
  begin.observe(view);
})();
