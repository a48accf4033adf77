// The card: draws a snapshot of the gang , and draws it again whenever Metaflow brings a new one.
"use strict";

const STATES = {
  forming: ["forming", "busy"], running: ["running", "busy"], ending: ["ending", "busy"], succeeded: ["succeeded", "good"],
  failed: ["failed", "bad"], stalled: ["no progress", "warn"], lost: ["ended without a report", "bad"],
};
const PHASES = ["start", "meet", "join", "launch", "first output", "run", "store"];
const MOMENTS = ["started", "met", "joined", "formed", "ranks", "output", "done", "stored"];
const LINES_UP_TO = 8;      // nodes that are drawn as lines; more of them are a heat map
const BARS_UP_TO = 24;      // nodes that have a bar of their own in the timeline
const METRICS = {
  cpu: ["CPU", "%"], memory: ["Memory", "%"], gpu: ["GPU", "%"], gpu_memory: ["GPU memory", "%"], gpu_power: ["GPU power", "W"],
  network: ["Network", "B/s"], disk: ["Disk", "B/s"],
};

function show(data) {
  const place = document.getElementById("gang");
  const open = new Set(Array.from(place.querySelectorAll("details[open]"), (element) => element.id));
  const scroll = new Map(Array.from(place.querySelectorAll("[data-scroll]"), (element) => [element.dataset.scroll, element.scrollLeft]));
  const parts = [head, problem, tiles, phases, resources, curves, ranks, traces, launches, settings];
  place.replaceChildren(...parts.flatMap((part) => part(data)).filter((element) => element != null));
  for (const element of place.querySelectorAll("details")) element.open = open.has(element.id);
  for (const element of place.querySelectorAll("[data-scroll]")) element.scrollLeft = scroll.get(element.dataset.scroll) || 0;
  return true;
}

function count(number, noun) { return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`; }

function head(data) {
  const [word, kind] = STATES[data.state] || [data.state, "busy"];
  const size = data.ranks_in_all ? `${count(data.nodes.length, "node")}, ${count(data.ranks_in_all, "rank")}` : count(data.nodes.length, "node");
  const over = ["succeeded", "failed", "lost"].includes(data.state);
  return [
    make("div", { class: "head" }, make("h1", {}, `${data.launcher} on ${size}`), make("span", { class: "state " + kind }, word),
      make("span", { class: "soft" }, (over ? "after " : "for ") + duration(data.now - data.started))),
    make("p", { class: "soft mono" }, `${data.pathspec}, attempt ${data.attempt}, ${new Date(data.started * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`),
  ];
}

function problem(data) {
  const boxes = [];
  if (data.failure)
    boxes.push(make("section", { class: "box bad", id: "failure" }, make("h2", {}, data.failure.title),
      data.failure.when != null ? make("p", { class: "soft" }, `${duration(data.failure.when - data.started)} after the start`) : null,
      data.failure.text ? make("pre", {}, data.failure.text) : null));
  if (data.stall)
    boxes.push(make("section", { class: "box warn", id: "stall" }, make("h2", {}, data.stall.title),
      data.stall.text ? make("pre", {}, data.stall.text) : null));
  return boxes;
}

function tiles(data) {
  const joined = data.nodes.filter((node) => node.at.joined != null).length;
  const found = [[`${joined} of ${data.nodes.length}`, "nodes have joined"]];
  if (data.ranks_running) found.push([`${data.ranks_running} of ${data.ranks_in_all}`, "ranks are running"]);
  for (const name of ["cpu", "memory", "gpu", "gpu_memory"]) {
    const values = latest(data, name);
    if (values.length) found.push([amount(values.reduce((sum, value) => sum + value, 0) / values.length, "%"), `${METRICS[name][0]}, mean of the nodes`]);
  }
  return [make("div", { class: "tiles" }, found.map(([value, text]) => make("div", { class: "tile" }, make("b", {}, value), make("span", {}, text))))];
}

function latest(data, name) {
  const series = data.series.values[name];
  if (!series) return [];
  return series.nodes.map((text) => levels(text.slice(-1), series.scale)[0]).filter((value) => value != null);
}

// A node's phases as parts of a bar; what has begun and not ended goes on until now.
function bar(data, node, label) {
  const parts = [];
  let before = node.at.started ?? null;
  for (let index = 1; index < MOMENTS.length && before != null; index += 1) {
    const moment = node.at[MOMENTS[index]];
    if (moment == null) continue;
    parts.push([before, moment, index - 1]);
    before = moment;
  }
  const end = node.at.failed ?? data.now - data.started;
  if (before != null && node.at.stored == null && data.state !== "succeeded" && end > before)
    parts.push([before, end, node.at.done != null ? 6 : node.at.joined != null ? 5 : 1]);
  return { label, parts, mark: node.at.failed ?? null };
}

function phases(data) {
  const end = Math.max(0.1, data.now - data.started);
  let nodes = data.nodes;
  let note = null;
  if (nodes.length > BARS_UP_TO) {
    const late = (node) => Math.max(0, ...Object.values(node.at));
    const failed = nodes.filter((node) => node.at.failed != null);
    const slow = [...nodes].sort((a, b) => (b.at.joined ?? 1e9) - (a.at.joined ?? 1e9) || late(b) - late(a));
    const chosen = new Set(Array.from(new Set([nodes[0], ...failed.slice(0, 8), ...slow])).slice(0, BARS_UP_TO));
    nodes = nodes.filter((node) => chosen.has(node));
    note = make("p", { class: "soft" }, `Node 0, nodes that failed and those that joined last: ${nodes.length} of ${data.nodes.length}.`);
  }
  const bars = nodes.map((node) => bar(data, node, "node " + node.index));
  return [make("h2", {}, "Phases"), make("div", { "data-scroll": "phases", class: "scroll" }, timeline(bars, PHASES, end)), note];
}

function resources(data) {
  const { start, every, values } = data.series;
  const charts = [];
  for (const [name, [title, unit]] of Object.entries(METRICS)) {
    const series = values[name];
    if (!series || !series.nodes.some((text) => /[^.A]/.test(text))) continue;
    const rows = series.nodes.map((text) => levels(text, series.scale));
    if (rows.length <= LINES_UP_TO) {
      const lines = rows.map((row, node) => ({ label: "node " + node, points: row.map((value, index) => [start + index * every, value]) }));
      charts.push(lineChart(title, lines, { unit, low: 0, high: unit === "%" ? 100 : null }));
    } else {
      const columns = Math.max(...rows.map((row) => row.length));
      charts.push(heatMap(title, rows, series.scale, { unit, xs: [start, start + columns * every], last: "node " + (rows.length - 1) }));
    }
  }
  return charts.length ? [make("h2", {}, "Nodes over time"), make("div", { class: "charts" }, charts)] : [];
}

function curves(data) {
  const charts = Object.entries(data.curves || {}).map(([name, curve]) => {
    const lines = curve.ranks
      ? Object.entries(curve.ranks).map(([rank, ys]) => ({ label: /^\d/.test(rank) ? "rank " + rank : rank, points: curve.steps.map((x, index) => [x, ys[index]]) }))
      : [{ label: "mean", points: curve.steps.map((x, index) => [x, curve.mean[index]]), band: curve.steps.map((x, index) => [x, curve.low[index], curve.high[index]]).filter(([, low]) => low != null) }];
    const note = curve.ranks ? "" : `mean and range of ${count(curve.count, "rank")}`;
    return lineChart(name, lines, { xText: (x) => "step " + Math.round(x), note });
  });
  return charts.length ? [make("h2", {}, "Metrics"), make("div", { class: "charts" }, charts)] : [];
}

function ranks(data) {
  if (!data.ranks.length) return [];
  const rows = data.ranks.map((rank) => make("tr", {},
    make("td", { class: typeof rank.rank === "number" ? "number" : "code" }, String(rank.rank)), make("td", { class: "number" }, String(rank.node)),
    make("td", { class: rank.bad ? "bad" : rank.silent > 300 ? "warn" : "" }, rank.state),
    make("td", { class: "number" }, rank.cpu == null ? "" : duration(rank.cpu)),
    make("td", { class: "number" }, rank.memory == null ? "" : amount(rank.memory, "B")),
    make("td", { class: "number" }, rank.silent == null ? "" : duration(rank.silent)),
    make("td", { class: "text code" }, rank.line || "")));
  const heads = ["rank", "node", "state", "CPU time", "memory", "silent for", "last line"];
  const note = data.ranks.length < data.ranks_in_all
    ? make("p", { class: "soft" }, `${count(data.ranks.length, "rank")} of ${data.ranks_in_all.toLocaleString("en")}: those that failed, and those that have been silent the longest.`) : null;
  return [make("h2", {}, "Ranks"), note,
    make("div", { class: "wide", "data-scroll": "ranks" }, make("table", {}, make("thead", {}, make("tr", {}, heads.map((text) => make("th", {}, text)))), make("tbody", {}, rows)))];
}

function traces(data) {
  if (!(data.traces || []).length) return [];
  return [make("h2", {}, "Profiles"), make("ul", {}, data.traces.map((path) => make("li", { class: "mono" }, path)))];
}

function pairs(values) {
  return make("table", {}, Object.entries(values).map(([name, value]) =>
    make("tr", {}, make("td", { class: "code" }, name), make("td", { class: "text code" }, String(value)))));
}

function launches(data) {
  return (data.launches || []).map((launch, index) => make("details", { id: "launch" + index },
    make("summary", {}, `What was started${data.launches.length > 1 ? ` (${index + 1})` : ""}: ${launch.what}`),
    make("pre", {}, launch.argv.join(" ")),
    launch.hostfile ? make("div", {}, make("h3", {}, "hostfile"), make("pre", {}, launch.hostfile)) : null,
    Object.keys(launch.environment || {}).length ? pairs(launch.environment) : null));
}

function settings(data) {
  const given = Object.keys(data.settings || {});
  return given.length ? [make("details", { id: "settings" }, make("summary", {}, "Settings in force"), pairs(data.settings))] : [];
}

window.metaflow_card_update = (data) => show(data);
show(JSON.parse(document.getElementById("data").textContent));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());
