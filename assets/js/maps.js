// Explore: plotly's own events, which Gradio does not pass on. Tokens chosen in one place are chosen in every
// pane; a cell of the grid of layers is told to the server; frames reach the browser inside of the layout, and
// are gone through by a slider and a button that hear keys.
const MAP = "cast-map";
const LAYERS = "cast-layers";
const find = element.querySelector(".cast-finder input");
const player = element.querySelector(".cast-player");
const [play, slider, place] = player.children;
// A move of the animation, and a look at where it has led.
const STEP_MS = 800;
let going = null;
const told = element.querySelector("[role=status]");
const plotIn = (id) => document.querySelector(`#${id} .js-plotly-plot`);

function traces(plot, meta) {
  return plot.data.map((trace, at) => ({ trace, at })).filter((entry) => entry.trace.meta === meta);
}

function tokenOf(text) {
  const holder = document.createElement("div");
  holder.innerHTML = /<b>(.*?)<\/b>/.exec(text)?.[1] ?? "";
  return holder.textContent;
}

function say(names) {
  const shown = names.slice(0, 12).map((name) => JSON.stringify(name.trim() || name)).join(", ");
  const more = names.length > 12 ? ` and ${names.length - 12} more` : "";
  told.textContent = names.length ? `${names.length} highlighted: ${shown}${more}.` : "";
}

// null shows every token as it was.
function choose(plot, indices) {
  const tokens = traces(plot, "tokens");
  if (!tokens.length) return;
  const rings = traces(plot, "chosen");
  if (rings.length) {
    for (const { trace, at } of rings) {
      const here = tokens.filter((entry) => (entry.trace.scene ?? "scene") === (trace.scene ?? "scene"));
      const axis = (name) => here.flatMap((entry) => (indices ?? []).map((index) => entry.trace[name][index]));
      window.Plotly.restyle(plot, { x: [axis("x")], y: [axis("y")], z: [axis("z")] }, [at]);
    }
  } else {
    window.Plotly.restyle(plot, { selectedpoints: [indices] }, tokens.map((entry) => entry.at));
  }
  say((indices ?? []).map((index) => tokenOf(tokens[0].trace.text[index])));
}

function chosenIn(event) {
  const points = (event?.points ?? []).filter((point) => point.data.meta === "tokens");
  const indices = [...new Set(points.map((point) => point.pointNumber))].sort((a, b) => a - b);
  return indices.length ? indices : null;
}

function search() {
  const plot = plotIn(MAP);
  if (!plot) return;
  const wanted = find.value.trim().toLowerCase();
  if (!wanted) return choose(plot, null);
  const texts = traces(plot, "tokens")[0]?.trace.text ?? [];
  choose(plot, [...texts.keys()].filter((at) => tokenOf(texts[at]).toLowerCase().includes(wanted)));
}

const steps = () => plotIn(MAP)?.layout?.meta?.steps ?? [];

function tell(at) {
  slider.value = at;
  place.textContent = `Target depth (source depth): ${steps()[at].label}`;
  slider.setAttribute("aria-valuetext", steps()[at].label);
}

function goTo(at) {
  const [names, how] = steps()[at].args;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches && { transition: { duration: 0 } };
  tell(at);
  // One that is overtaken by the next ends with an error.
  window.Plotly.animate(plotIn(MAP), names, { ...how, ...still }).catch(() => {});
}

function rest() {
  clearInterval(going);
  going = null;
  play.textContent = "▶ Play";
}

function toggle() {
  if (going) return rest();
  const last = steps().length - 1;
  if (Number(slider.value) === last) goTo(0);
  play.textContent = "■ Pause";
  going = setInterval(() => {
    goTo(Math.min(Number(slider.value) + 1, last));
    if (Number(slider.value) === last) rest();
  }, STEP_MS);
}

// Once for each figure that the server sends.
function drawnAnew(plot) {
  if (!plot.data || plot.castData === plot.data) return;
  plot.castData = plot.data;
  window.Plotly.deleteFrames(plot);
  window.Plotly.addFrames(plot, plot.layout.meta?.frames ?? []);
  rest();
  player.hidden = !steps().length;
  if (!player.hidden) {
    slider.max = steps().length - 1;
    tell(0);
  }
  say([]);
  if (find.value) search();
}

function wire() {
  const map = plotIn(MAP);
  if (map?.on && !map.castWired) {
    map.castWired = true;
    map.on("plotly_selected", (event) => event && choose(map, chosenIn(event)));
    map.on("plotly_deselect", () => choose(map, null));
    map.on("plotly_click", (event) => chosenIn(event) && choose(map, chosenIn(event)));
    map.on("plotly_afterplot", () => drawnAnew(map));
    drawnAnew(map);
  }
  const layers = plotIn(LAYERS);
  if (layers?.on && !layers.castWired) {
    layers.castWired = true;
    layers.on("plotly_click", (event) => {
      const cell = event.points.find((point) => point.data.type === "heatmap");
      if (cell) trigger("select", { pair: [cell.y, cell.x] });
    });
  }
}

find.addEventListener("input", search);
play.addEventListener("click", toggle);
slider.addEventListener("input", () => {
  rest();
  goTo(Number(slider.value));
});
new MutationObserver(wire).observe(document.body, { childList: true, subtree: true });
wire();

window.castMap = {
  save: (format) => {
    const plot = plotIn(MAP);
    if (!plot) return;
    const { data, layout, offsetWidth: width, offsetHeight: height } = plot;
    // The page's own type is not in the file: laid out with it, the legend's words would overlap.
    const figure = { data, layout: { ...layout, font: { ...layout.font, family: "sans-serif" } } };
    window.Plotly.downloadImage(figure, { format, filename: "cast-map", scale: 2, width, height });
  },
  take: (file) => {
    if (!file) return;
    const link = Object.assign(document.createElement("a"), { href: file.url, download: file.orig_name });
    link.click();
  },
};
