"use strict";
(() => {
  // The page this stands in is static; this bar is added by the server. Texts reach it through textContent only.
  const mine = document.getElementById("prefixlab-live").dataset.version;
  const make = (tag, cls, text) => { const e = document.createElement(tag); e.className = cls; e.textContent = text || ""; return e; };
  const sheet = new CSSStyleSheet();  // no style element, so that no policy of the page stands in the way
  sheet.replaceSync(`
    #live-bar { position:sticky; top:0; z-index:50; background:var(--panel, var(--paper, Canvas)); color:var(--ink, CanvasText); border-bottom:1px solid var(--line, GrayText); font-size:.875rem; padding:6px 20px; }
    #live-bar .live-row { max-width:1280px; margin:0 auto; display:flex; flex-wrap:wrap; gap:4px 14px; align-items:center; }
    #live-bar progress { width:140px; accent-color:var(--accent, Highlight); }
    #live-bar button { font:inherit; font-weight:600; cursor:pointer; padding:3px 10px; border-radius:6px; border:1px solid var(--accent, Highlight); background:var(--paper, Canvas); color:var(--accent, LinkText); }
    #live-bar .live-now { overflow-wrap:anywhere; color:var(--soft, inherit); } #live-bar .live-bad { color:var(--bad, inherit); font-weight:600; }
    #live-bar summary { cursor:pointer; } #live-bar ul { margin:4px 0 0; padding-left:20px; max-height:30vh; overflow:auto; overflow-wrap:anywhere; }
    #live-bar [hidden] { display:none; }
    @media print { #live-bar { display:none; } }`);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  const bar = make("section", ""), row = make("div", "live-row"), said = make("span", "live-said"), shown = make("progress", "");
  const left = make("span", "live-left"), now = make("span", "live-now"), trouble = make("span", "live-bad");
  const failures = make("details", ""), title = make("summary", "live-bad"), list = make("ul", ""), fresh = make("span", ""), button = make("button", "", "New results: reload");
  bar.id = "live-bar"; bar.setAttribute("aria-label", "State of the run");
  said.setAttribute("aria-live", "polite"); fresh.setAttribute("aria-live", "polite"); trouble.setAttribute("aria-live", "polite");
  shown.setAttribute("aria-label", "Steps done"); shown.hidden = true; failures.hidden = true; button.type = "button"; button.onclick = () => location.reload();
  failures.append(title, list); row.append(said, shown, left, now, trouble, failures, fresh); bar.append(row); document.body.prepend(bar);
  // A page with a sticky part of its own can stand below the bar: top: var(--live-bar, 0px).
  new ResizeObserver(() => document.documentElement.style.setProperty("--live-bar", bar.offsetHeight + "px")).observe(bar);
  const say = (e, text) => { if (e.textContent !== text) e.textContent = text; };  // a screen reader reads what changes
  const time = s => s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
  const of = (c, what) => `${c.done} of ${c.total} ${what}` + (c.failed ? `, ${c.failed} failed` : "");
  function show(s) {
    const going = s.state === "running";
    say(said, `${s.sentence} ${of(s.steps, "steps")}` + (s.cells.total ? `; ${of(s.cells, "cells")}` : "") + ".");
    shown.hidden = s.state === "finished"; shown.max = Math.max(s.steps.total, 1); shown.value = s.steps.done;
    say(left, going && s.seconds_left !== null ? `About ${time(s.seconds_left)} left (predicted: ${time(s.predicted_seconds_left)}).` : "");
    say(now, s.now ? `Now ${s.now.step}, since ${new Date(1000 * s.now.since).toLocaleTimeString()} (${time(s.now.seconds)} of about ${time(s.now.predicted_seconds)}); ${s.steps.pending} steps wait.` : "");
    say(trouble, s.page.error ? `The page could not be built again: ${s.page.error}` : "");
    failures.hidden = !s.failures.length; say(title, `${s.failures.length} failed`);
    if (list.childElementCount !== s.failures.length) list.replaceChildren(...s.failures.map(f => make("li", "", `${f.step}: ${f.reason}`)));
    if (s.page.version && s.page.version !== mine) {
      if (!mine) location.reload();  // nobody reads a page that says it is not there yet
      else if (!button.isConnected) fresh.append(button);
    } else button.remove();
    return going || s.page.building ? 3000 : 10000;
  }
  async function poll() {
    let wait = 5000;
    try {
      if (!document.hidden) {
        const answer = await fetch("/status.json", { cache: "no-store" });
        if (!answer.ok) throw new Error(answer.status);
        wait = show(await answer.json());
      }
    } catch { say(said, "The viewer does not answer: it was ended, or is out of reach. What is below is the page as it was."); say(left, ""); say(now, ""); }
    setTimeout(poll, mine ? wait : Math.min(wait, 2000));
  }
  poll();
})();
