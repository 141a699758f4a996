// Talk mode and the guided tour: what lives in the browser. Both work while the server is busy.
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const press = (id) => byId(id)?.click();
  const TALK = "cast-talk";
  const STRENGTHS = [0, 0.5, 1, 1.5, 2];
  let strength = 1;
  let leftFrom = null;

  // Talk mode

  function remember(on) {
    try {
      on ? localStorage.setItem(TALK, "1") : localStorage.removeItem(TALK);
    } catch {
      // A browser that keeps nothing still shows talk mode.
    }
  }

  function setTalk(on) {
    root.classList.toggle(TALK, on);
    byId("cast-talk-switch")?.setAttribute("aria-pressed", String(on));
    remember(on);
    // Plotly draws for the size that it finds.
    window.dispatchEvent(new Event("resize"));
  }

  // A plot's type and height are its own, not the style sheet's.
  const PLOT_TYPE = [14, 20];
  const WIDE_PLOT = 1200;
  const TALLER = 1.5;
  const heights = new WeakMap();

  function sizePlots() {
    const size = PLOT_TYPE[Number(root.classList.contains(TALK))];
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      const { font, height } = plot.layout ?? {};
      if (!window.Plotly || !plot.offsetParent || !font?.size || !height) continue;
      // A height that was not set here is that of a new figure.
      const own = heights.get(plot)?.set === height ? heights.get(plot).own : height;
      const set = Math.round(plot.clientWidth >= WIDE_PLOT ? own * TALLER : own);
      heights.set(plot, { own, set });
      if (font.size !== size || height !== set) window.Plotly.relayout(plot, { "font.size": size, height: set });
    }
  }

  window.addEventListener("resize", sizePlots);

  // The tour

  const steps = () => [...document.querySelectorAll("#cast-tour [data-step]")];
  const step = () => Number(root.dataset.tour || 0);

  // Everything outside the tour is out of reach while it runs.
  function isolate(node, on) {
    for (let inner = node; inner !== document.body; inner = inner.parentElement) {
      for (const other of inner.parentElement.children) {
        if (other !== inner && !["SCRIPT", "STYLE", "LINK"].includes(other.tagName)) other.inert = on;
      }
    }
  }

  function goTo(number) {
    const all = steps();
    if (number < 1 || number > all.length) return;
    root.dataset.tour = String(number);
    byId("cast-tour-back").disabled = number === 1;
    byId("cast-tour-next").disabled = number === all.length;
    const shown = all[number - 1];
    byId("cast-tour").scrollTop = 0;
    byId("cast-tour").setAttribute("aria-labelledby", shown.querySelector("h2").id);
    shown.querySelector("h2").focus();
    if (shown.dataset.live) press("cast-tour-run");
  }

  function begin() {
    const tour = byId("cast-tour");
    if (!steps().length || step()) return;
    leftFrom = document.activeElement;
    tour.setAttribute("role", "dialog");
    tour.setAttribute("aria-modal", "true");
    isolate(tour, true);
    strength = 1;
    goTo(1);
  }

  function leave() {
    delete root.dataset.tour;
    isolate(byId("cast-tour"), false);
    if (isHeld()) hold();
    leftFrom?.focus();
  }

  function stronger(by) {
    if (!steps()[step() - 1]?.dataset.strength) return;
    const place = STRENGTHS.indexOf(strength) + by;
    if (place < 0 || place >= STRENGTHS.length) return;
    strength = STRENGTHS[place];
    press("cast-tour-run");
  }

  const IN_TOUR = {
    ArrowRight: () => goTo(step() + 1),
    ArrowLeft: () => goTo(step() - 1),
    PageDown: () => goTo(step() + 1),
    PageUp: () => goTo(step() - 1),
    ArrowUp: () => stronger(1),
    ArrowDown: () => stronger(-1),
    Escape: leave,
  };

  // Keys

  const tab = (number) => document.querySelectorAll('.cast-tabs button[role="tab"]')[number - 1]?.click();
  const ALWAYS = {
    t: () => setTalk(!root.classList.contains(TALK)),
    g: () => press("cast-tour-start"),
  };
  const IN_TALK = {
    r: () => press("cast-generate"),
    s: () => press("cast-stop"),
    p: () => document.querySelector("#cast-prompt textarea")?.focus(),
  };

  const LEAVING = ["Tab", "Shift"];
  const SILENT = ["range", "checkbox", "radio", "button", "submit"];
  const isWriting = (node) =>
    node.isContentEditable ||
    node.tagName === "TEXTAREA" ||
    node.tagName === "SELECT" ||
    (node.tagName === "INPUT" && !SILENT.includes(node.type));

  function wanted(event) {
    if (step()) return IN_TOUR[event.key];
    const talking = root.classList.contains(TALK);
    if (isWriting(event.target)) return talking && event.key === "Escape" ? () => event.target.blur() : null;
    const key = event.key.toLowerCase();
    if (talking && /^[1-9]$/.test(key)) return () => tab(Number(key));
    return ALWAYS[key] || (talking ? IN_TALK[key] : null);
  }

  document.addEventListener(
    "keydown",
    (event) => {
      // Gradio's picker answers any key a moment later, and so opens its list again behind the focus that left it.
      if (LEAVING.includes(event.key) && event.target.getAttribute("role") === "combobox") event.stopPropagation();
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
      const act = wanted(event);
      if (!act) return;
      if (event.key !== "Escape" || step()) event.preventDefault();
      act();
    },
    true,
  );

  // The share link: only what differs from the defaults, and no folder of this machine

  const isPublic = (name) => /^(pocket:[\w.-]+(\/[\w.-]+)?|[\w-][\w.-]*\/[\w-][\w.-]*)$/.test(name);

  const tabs = () => [...document.querySelectorAll('.cast-tabs button[role="tab"]')];

  async function copyLink(defaults, values) {
    const link = new URL(location.pathname, location.origin);
    let left = "";
    Object.keys(defaults).forEach((name, place) => {
      const value = values[place];
      if (value === defaults[name] || value === null) return;
      if (["source", "target", "adapter", "retrained"].includes(name) && !isPublic(value)) left = ", without local folders";
      else link.searchParams.set(name, value);
    });
    const open = tabs().findIndex((tab) => tab.getAttribute("aria-selected") === "true");
    if (open > 0) link.searchParams.set("tab", tabs()[open].textContent.trim());
    try {
      await navigator.clipboard.writeText(link.href);
      return `Copied${left}`;
    } catch {
      // The clipboard is closed to pages that are not served securely.
      window.prompt("Copy this link", link.href);
      return "Copy link";
    }
  }

  // Taken once: a reload then shows what the visitor has changed since.
  function takeLink() {
    const taken = location.search;
    const open = new URLSearchParams(taken).get("tab");
    tabs().find((tab) => tab.textContent.trim() === open)?.click();
    const rest = new URL(location.href);
    [...rest.searchParams.keys()].filter((key) => !key.startsWith("__")).forEach((key) => rest.searchParams.delete(key));
    history.replaceState(history.state, "", rest);
    return taken;
  }

  // What a component is told before it is built is lost on it; with nothing to show for it, for ever.
  const BUILT_WITHIN = 10000;
  const moment = () => new Promise((done) => setTimeout(done, 50));

  async function built(shown) {
    const late = performance.now() + BUILT_WITHIN;
    while (!document.querySelector(shown) && performance.now() < late) await moment();
    await moment();
  }

  // Pressed a moment later, when every field holds what it was just set to; and again while nothing begins:
  // a stream that is only just being cancelled still keeps the button from starting another.
  async function generate() {
    const late = performance.now() + BUILT_WITHIN;
    do {
      for (let wait = 0; wait < 5; wait++) await moment();
      press("cast-generate");
    } while (!document.querySelector('.cast-pane:not([data-state="idle"])') && performance.now() < late);
  }

  // What a visitor sets before all is put back that the browser kept would be undone: it is held still till then.

  const HELD = '.cast-ready, .cast-first, .cast-tabs [role="tabpanel"]';
  const HELD_AT_MOST = 15000;
  let putBack = 0;

  const isHeld = () => !root.hasAttribute("data-restored");

  function hold() {
    for (const part of document.querySelectorAll(HELD)) part.inert = isHeld();
  }

  function release() {
    root.setAttribute("data-restored", "");
    hold();
  }

  const later = (words) => new Promise((done) => setTimeout(() => done(words), 2000));

  window.castStage = {
    copyLink,
    takeLink,
    later,
    built,
    generate,
    restored: (all) => {
      if (++putBack === all) release();
    },
    toggleTalk: () => setTalk(!root.classList.contains(TALK)),
    begin,
    leave,
    next: () => goTo(step() + 1),
    back: () => goTo(step() - 1),
    strength: () => strength,
    // Once the page stands: the switch says how it is set. A server that fails must not hold the page for ever.
    ready: () => {
      byId("cast-talk-switch")?.setAttribute("aria-pressed", String(root.classList.contains(TALK)));
      setTimeout(() => isHeld() && release(), HELD_AT_MOST);
    },
  };

  // Gradio names what stands where a plot is still empty, and does not say what it is.
  new MutationObserver(() => {
    for (const empty of document.querySelectorAll("div.empty[aria-label]:not([role])")) empty.setAttribute("role", "img");
    // A list long enough to scroll is a stop of its own for the Tab key, and is gone as it is left: focus is lost.
    for (const list of document.querySelectorAll('ul[role="listbox"]:not([tabindex])')) list.tabIndex = -1;
    sizePlots();
    if (isHeld()) hold();
  }).observe(root, { childList: true, subtree: true });

  try {
    root.classList.toggle(TALK, localStorage.getItem(TALK) === "1");
  } catch {
    // See `remember`.
  }
})();
