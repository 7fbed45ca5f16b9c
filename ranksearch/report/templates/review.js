"use strict";
// Draws the figures that the page brings along, and shows the plan of the trial that is chosen.
const read = (id) => document.getElementById(id).textContent;
const content = JSON.parse(read("content"));
const settings = { responsive: true, displayModeBar: false };

// The library is embedded in the page, compressed, so that nothing is fetched.
async function library() {
  const { body } = await fetch(`data:application/gzip;base64,${read("library")}`);
  const stream = body.pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

// Figures take their colours from the page's theme.
function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const [ink, line, ground] = ["--ink", "--line", "--raised"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, linecolor: line, tickcolor: line, zerolinecolor: line };
  const narrow = window.innerWidth < 600;
  const themed = { ...layout, uirevision: "kept", font: { color: ink, size: narrow ? 10 : 12 } };
  for (const name of ["xaxis", "yaxis"]) themed[name] = { ...layout[name], ...axis };
  themed.hoverlabel = { ...layout.hoverlabel, bgcolor: ground, bordercolor: line,
                        font: { ...(layout.hoverlabel || {}).font, color: ink } };
  return themed;
}

// Figure -> the trial of a point on it.
const trialOf = { front: (point) => point.customdata, heat: (point) => point.x, fine_tuning: (point) => point.customdata[0] };
const drawn = new Set();

function draw(id) {
  const { data, layout } = content.figures[id];
  Plotly.react(id, data, themed(layout), settings);
  if (!drawn.has(id) && trialOf[id])
    document.getElementById(id).on("plotly_click", ({ points: [point] }) => show(trialOf[id](point)));
  drawn.add(id);
}

const redraw = () => drawn.forEach(draw);

// A figure is drawn once it is nearly visible.
function drawInSight() {
  const near = ({ isIntersecting, target }) => {
    if (!isIntersecting) return;
    observer.unobserve(target);
    draw(target.id);
  };
  const observer = new IntersectionObserver((entries) => entries.forEach(near), { rootMargin: "300px" });
  for (const [id, { layout }] of Object.entries(content.figures)) {
    const place = document.getElementById(id);
    place.style.minHeight = `${layout.height}px`;
    observer.observe(place);
  }
}

const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)} %`;

function show(number) {
  const trial = content.trials[number];
  if (!trial) return;
  document.getElementById("trial").value = number;
  document.querySelectorAll(".which").forEach((place) => { place.textContent = `trial ${number}`; });
  document.getElementById("summary").textContent = trial.summary;
  const choices = trial.plan.map(([scheme, size, macs, error], index) => {
    const layer = content.layers[index];
    const dense = scheme < 0;
    return { layer, dense, macs: dense ? layer.macs : macs, error, size: dense ? layer.width : size,
             scheme: dense ? "dense" : content.schemes[scheme] };
  });
  const colors = choices.map(({ scheme }) => content.colors[scheme]);
  const bars = { sizes: choices.map(({ size }) => size), macs: choices.map(({ macs }) => macs / 1e6) };
  for (const [id, values] of Object.entries(bars)) {
    const plan = content.figures[id].data[1];
    Object.assign(plan, { x: values, marker: { color: colors }, customdata: choices.map(({ scheme }) => scheme),
                          hovertemplate: "%{y}: %{x}, %{customdata}<extra></extra>" });
    if (drawn.has(id)) draw(id);
  }
  const body = document.querySelector("#layers tbody");
  body.replaceChildren(...choices.map(({ layer, dense, scheme, size, macs, error }) => {
    const row = document.createElement("tr");
    const cells = [layer.name, scheme, dense ? "-" : size, layer.width, percent(macs / layer.macs, 0),
                   dense ? "-" : percent(error, 1)];
    row.append(...cells.map((text, column) => {
      const cell = document.createElement(column ? "td" : "th");
      if (!column) cell.scope = "row";
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
  const front = content.figures.front;
  const place = { x: [trial.speedup], y: [100 * trial.accuracy], mode: "markers", hoverinfo: "skip", name: "chosen",
                  marker: { symbol: "circle-open", size: 20, color: "#D55E00", line: { width: 3 } } };
  front.data = [...front.data.filter(({ name }) => name !== "chosen"), place];
  draw("front");
}

function start() {
  if (content.trials) {
    const select = document.getElementById("trial");
    select.addEventListener("change", () => show(select.value));
    show(content.selected);
  }
  drawInSight();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const paper = (on) => () => {
    document.documentElement.classList.toggle("paper", on);
    Object.keys(content.figures).forEach(draw);
  };
  window.addEventListener("beforeprint", paper(true));
  window.addEventListener("afterprint", paper(false));
  ready();
}

// For tests and benchmarks: the page is ready, this many milliseconds after navigation started.
const ready = () => { document.documentElement.dataset.ready = Math.round(performance.now()); };

function fail(error) {
  const message = document.getElementById("trouble");
  message.hidden = false;
  message.textContent = `The figures cannot be drawn here (${error}): see the static ones in the folder pictures.`;
  ready();
}

if (Object.keys(content.figures).length) library().then(start).catch(fail);
else ready();
