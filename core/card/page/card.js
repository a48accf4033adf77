// The card: draws a snapshot of the gang, and draws it again whenever Metaflow brings a new one.
"use strict";

const STATES = {
  forming: ["forming", "busy"], running: ["running", "busy"], ending: ["ending", "busy"], succeeded: ["succeeded", "good"],
  failed: ["failed", "bad"], stalled: ["no progress", "warn"], lost: ["ended without a report", "bad"],
};
const OVER = ["succeeded", "failed", "lost"];
const MOMENTS = ["started", "met", "joined", "formed", "ranks", "output", "done", "stored"];
const PHASES = ["start", "join", "launcher", "prepare", "first output", "run", "store", "wait as a spare"];  // between two moments each, but the last
const NEXT = { started: 0, met: 1, joined: 2, formed: 5, ranks: 4, output: 5, done: 6 };  // the phase after a moment
const LINES_UP_TO = 8;      // nodes that are drawn as lines; more of them are a heat map
const BARS_UP_TO = 16;      // nodes that have a bar of their own in the timeline; of more there are ...
const BARS_OF_MANY = 10;
const ROWS_UP_TO = 16;      // of a table; more of them scroll
const SILENT_S = 300;       // a rank that has been silent for as long stands out
const METRICS = {
  cpu: ["CPU", "%"], memory: ["Memory", "%"], gpu: ["GPU", "%"], gpu_memory: ["GPU memory", "%"], gpu_power: ["GPU power", "W"],
  network: ["Network", "B/s"], disk: ["Disk", "B/s"],
};
let shown = null;

function show(data) {
  shown = data;
  const place = document.getElementById("gang");
  const open = new Set(Array.from(place.querySelectorAll("details[open]"), (element) => element.id));
  const scroll = new Map(Array.from(place.querySelectorAll("[data-scroll]"), (element) => [element.dataset.scroll, [element.scrollLeft, element.scrollTop]]));
  const drawn = [head, problem, tiles, phases, roles, curves, resources, gpus, ranks, traces, launches, settings];
  place.replaceChildren(...drawn.flatMap((part) => part(data)).filter((element) => element != null));
  for (const element of place.querySelectorAll("details")) element.open = open.has(element.id);
  for (const element of place.querySelectorAll("[data-scroll]")) [element.scrollLeft, element.scrollTop] = scroll.get(element.dataset.scroll) || [0, element.tagName === "PRE" ? element.scrollHeight : 0];  // of a traceback the end says the most
  return true;
}

function count(number, noun) { return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`; }

// Pixels that the page's column has for its parts.
function room() {
  const style = getComputedStyle(document.getElementById("gang"));
  return document.getElementById("gang").clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
}

// Charts in rows without a hole: of five, three are in the first and two in the second. makers: functions of a width.
function rows(makers) {
  const most = room() > 960 ? 3 : room() > 640 ? 2 : 1, lines = Math.ceil(makers.length / most), found = [];
  for (let line = 0, next = 0; line < lines; line += 1) {
    const size = Math.ceil((makers.length - next) / (lines - line));
    const width = (room() - 12 * (size - 1)) / size - 26;  // the gaps, and a panel's border and padding
    found.push(make("div", { class: "charts", style: `grid-template-columns:repeat(${size},minmax(0,1fr))` }, makers.slice(next, next + size).map((maker) => maker(width))));
    next += size;
  }
  return found;
}

function head(data) {
  const [word, kind] = STATES[data.state] || [data.state, "busy"];
  const size = data.ranks_in_all ? `${count(data.nodes.length, "node")}, ${count(data.ranks_in_all, "rank")}` : count(data.nodes.length, "node");
  return [
    make("div", { class: "head" }, make("h1", {}, `${data.launcher} on ${size}`), make("span", { class: "state " + kind }, word),
      make("span", { class: "soft" }, (OVER.includes(data.state) ? "after " : "for ") + duration(data.now - data.started))),
    make("p", { class: "soft path" }, make("span", { class: "mono" }, data.pathspec), make("span", {}, "attempt " + data.attempt),
      make("span", {}, "began " + new Date(data.started * 1000).toISOString().slice(0, 19).replace("T", " ") + " UTC")),
  ];
}

function problem(data) {
  const boxes = [];
  if (data.failure)
    boxes.push(make("section", { class: "box bad", id: "failure" }, make("h2", {}, data.failure.title),
      data.failure.when != null ? make("p", { class: "soft" }, `${duration(data.failure.when - data.started)} after the start`) : null,
      data.failure.text ? make("pre", { "data-scroll": "failure" }, data.failure.text) : null));
  if (data.restarts && data.restarts.length)
    boxes.push(make("section", { class: "box warn", id: "restarts" }, make("h2", {}, "The ranks were started again"),
      make("ul", {}, data.restarts.map((entry) => make("li", {}, `${duration(entry.at - data.started)} after the start: ${entry.line}`)))));
  if (data.stall)
    boxes.push(make("section", { class: "box warn", id: "stall" }, make("h2", {}, data.stall.title),
      data.stall.text ? make("pre", {}, data.stall.text) : null));
  return boxes;
}

function tiles(data) {
  const joined = data.nodes.filter((node) => node.at.joined != null).length, over = OVER.includes(data.state);
  const found = [[`${joined} of ${data.nodes.length}`, over ? "nodes had joined" : "nodes have joined"]];
  if (!over && data.ranks_running) found.push([`${data.ranks_running} of ${data.ranks_in_all}`, "ranks are running"]);
  for (const name of ["cpu", "memory", "gpu", "gpu_memory"]) {
    const series = data.series.values[name];
    const values = series ? series.nodes.flatMap((text) => levels(over ? text : text.slice(-1), series.scale)).filter((value) => value != null) : [];
    if (values.length) found.push([amount(values.reduce((sum, value) => sum + value, 0) / values.length, "%"), `${METRICS[name][0]}${over ? ", mean" : " now"}`]);
  }
  const per = room() > 640 ? found.length : Math.ceil(found.length / Math.ceil(found.length / 3));
  return [make("div", { class: "tiles", style: `--per:${per}` }, found.map(([value, text]) => make("div", { class: "tile" }, make("b", {}, value), make("span", {}, text))))];
}

// A node's phases as parts of a bar; what has begun and not ended goes on until now.
function bar(data, node, label) {
  const found = [];
  let before = node.at.started ?? null, last = "started";
  for (let index = 1; index < MOMENTS.length && before != null; index += 1) {
    const moment = node.at[MOMENTS[index]];
    if (moment == null) continue;
    found.push([before, moment, index - 1]);
    [before, last] = [moment, MOMENTS[index]];
  }
  const end = node.out ?? node.at.failed ?? data.now - data.started;
  if (before != null && last !== "stored" && (node.out != null || data.state !== "succeeded") && end > before) found.push([before, end, NEXT[last]]);
  return { label, parts: until(node.out ?? Infinity, "waited" in node ? waiting(found, node) : found), mark: node.out ?? node.at.failed ?? null };
}

// A spare node waits from the beginning of its body on, until it takes a place or the body is over.
function waiting(parts, node) {
  const from = node.at.formed ?? Infinity, to = node.waited ?? node.at.done ?? Infinity, wait = PHASES.length - 1;
  const found = parts.flatMap(([a, b, phase]) => [[a, Math.min(b, from), phase], [Math.max(a, from), Math.min(b, to), wait], [Math.max(a, to), b, phase]]);
  return found.filter(([a, b]) => b > a);
}

function until(end, parts) { return parts.filter(([from]) => from < end).map(([from, to, phase]) => [from, Math.min(to, end), phase]); }

function phases(data) {
  const end = Math.max(0.1, data.now - data.started), wide = room() > 700;
  let nodes = data.nodes, note = null;
  if (nodes.length > BARS_UP_TO) {
    const late = (node) => Math.max(0, ...Object.values(node.at));
    const failed = nodes.filter((node) => node.out != null || node.at.failed != null);
    const slow = [...nodes].sort((a, b) => (b.at.joined ?? 1e9) - (a.at.joined ?? 1e9) || late(b) - late(a));
    const chosen = new Set(Array.from(new Set([nodes[0], ...failed.slice(0, 6), ...slow])).slice(0, BARS_OF_MANY));
    nodes = nodes.filter((node) => chosen.has(node));
    note = make("p", { class: "soft" }, `Node 0, nodes that failed or were left out, and those that joined last: ${nodes.length} of ${data.nodes.length}.`);
  }
  const hosts = new Set(data.nodes.map((node) => node.host));
  const name = (node) => `node ${node.index}` + (wide && hosts.size > 1 && node.host ? ` (${node.host.slice(0, 20)})` : "");
  const bars = nodes.map((node) => bar(data, node, name(node)));
  // A phase of seconds is a hair in the bar of a day: its time is told.
  const longest = PHASES.map((_, index) => Math.max(...bars.flatMap((each) => each.parts.filter((part) => part[2] === index).map(([from, to]) => to - from)), -1));
  const told = PHASES.map((phase, index) => (longest[index] < 0 ? null : `${phase} ${duration(longest[index])}`));
  const marked = bars.some((each) => each.mark != null) ? make("span", {}, make("b", { class: "cross" }, "×"), data.nodes.some((node) => node.out != null) ? "failed, or left out" : "failed") : null;
  const names = legend(told, phaseColour);
  if (marked) names.append(marked);
  return [make("h2", {}, "Phases"), make("div", { class: "chart" }, names, timeline(bars, PHASES, end, room() - 26)), note];
}

// Nodes that were left out, and spare ones, in the words of the log and of metaflow-gang why.
function roles(data) {
  const found = data.roles || [];
  if (!found.length) return [];
  const lines = found.map((role) => [String(role.node), data.nodes[role.node].host, [role.text, role.state === "left out" ? "bad" : ""], duration(role.at - data.started)]);
  const some = found.length < data.roles_in_all ? make("p", { class: "soft" }, `${count(found.length, "node")} of ${data.roles_in_all.toLocaleString("en")}.`) : null;
  const columns = [["node", "number"], ["host", "code"], ["what it is", "text"], ["since", "number"]];
  return [make("h2", {}, "Nodes left out, and spare nodes"), some, table("roles", columns, lines)];
}

function resources(data) {
  const { start, every, values } = data.series;
  const charts = [];
  for (const [name, [title, unit]] of Object.entries(METRICS)) {
    const series = values[name];
    if (!series || !series.nodes.some((text) => /[^.A]/.test(text))) continue;
    const table = series.nodes.map((text) => levels(text, series.scale));
    const columns = Math.max(...table.map((row) => row.length));
    if (table.length <= LINES_UP_TO) {
      const lines = table.map((row, node) => ({ label: "node " + node, points: row.map((value, index) => [start + index * every, value]) }));
      charts.push((width) => lineChart(title, lines, { width, unit, time: true, low: 0, high: unit === "%" ? 100 : null, from: 0, until: start + (columns - 1) * every }));
    } else {
      charts.push((width) => heatMap(title, table, series.scale, { width, unit, xs: [start, start + columns * every] }));
    }
  }
  return charts.length ? [make("h2", {}, "Nodes over time"), ...rows(charts)] : [];
}

function curves(data) {
  const charts = Object.entries(data.curves || {}).map(([name, curve]) => {
    const named = (rank) => (/^\d/.test(rank) ? "rank " + rank : rank);
    const lines = curve.ranks
      ? Object.entries(curve.ranks).map(([rank, points]) => ({ label: named(rank), points }))
      : [{ label: "mean", points: curve.steps.map((x, index) => [x, curve.mean[index]]), band: curve.steps.map((x, index) => [x, curve.low[index], curve.high[index]]).filter(([, low]) => low != null) }];
    const note = !curve.ranks ? `mean and range of ${count(curve.count, "rank")}` : lines.length === 1 ? lines[0].label : "";
    return lines.some((line) => line.points.some(([, y]) => y != null)) ? (width) => lineChart(name, lines, { width, note }) : null;
  }).filter((maker) => maker);
  return charts.length ? [make("h2", {}, "Metrics"), ...rows(charts)] : [];
}

// A table whose rows become blocks on a phone, where each cell says what it is. columns: [[head, class], ...]
// A column without any text is left out.
function table(name, all, every) {
  const used = (row) => row.filter((_, index) => every.some((line) => (Array.isArray(line[index]) ? line[index][0] : line[index]) !== ""));
  const columns = used(all), lines = every.map(used);
  const cells = (line) => line.map((cell, index) => {
    const [text, more] = Array.isArray(cell) ? cell : [cell, ""];
    return make("td", { class: `${columns[index][1]} ${more}`, "data-name": columns[index][0] }, text);
  });
  return make("div", { class: lines.length > ROWS_UP_TO ? "wide long" : "wide", "data-scroll": name }, make("table", { class: "cells" },
    make("thead", {}, make("tr", {}, columns.map(([text, kind]) => make("th", { class: kind }, text)))),
    make("tbody", {}, lines.map((line) => make("tr", {}, cells(line))))));
}

function gpus(data) {
  const found = data.gpus || [];
  if (!found.length) return [];
  const part = (gpu) => (gpu.memory == null ? "" : amount(gpu.memory, "B") + (gpu.total ? ` of ${amount(gpu.total, "B")}` : ""));
  const lines = found.map((gpu) => [String(gpu.node), String(gpu.gpu), gpu.util == null ? "" : amount(gpu.util, "%"), part(gpu),
    gpu.power == null ? "" : amount(gpu.power, "W"), [gpu.errors || "none", gpu.errors ? "bad" : "soft"]]);
  const note = found.length < data.gpus_in_all
    ? make("p", { class: "soft" }, `${count(found.length, "GPU")} of ${data.gpus_in_all.toLocaleString("en")}: those with errors, and the least busy.`) : null;
  const columns = [["node", "number"], ["GPU", "number"], ["busy", "number"], ["memory", "number"], ["power", "number"], ["errors", "text"]];
  return [make("h2", {}, "GPUs"), note, table("gpus", columns, lines)];
}

function ranks(data) {
  if (!data.ranks.length) return [];
  const lines = data.ranks.map((rank) => [String(rank.rank), String(rank.node), [rank.state, rank.bad ? "bad" : ""],
    rank.cpu == null ? "" : duration(rank.cpu), rank.memory == null ? "" : amount(rank.memory, "B"), [rank.silent == null ? "" : duration(rank.silent), rank.silent >= SILENT_S ? "warn" : ""], rank.line || ""]);
  const note = data.ranks.length < data.ranks_in_all
    ? make("p", { class: "soft" }, `${count(data.ranks.length, "rank")} of ${data.ranks_in_all.toLocaleString("en")}: those that failed, and those that have been silent the longest.`) : null;
  const columns = [["rank", typeof data.ranks[0].rank === "number" ? "number" : "code"], ["node", "number"], ["state", ""], ["CPU time", "number"], ["memory", "number"], ["silent for", "number"], ["last line", "text code"]];
  return [make("h2", {}, "Ranks"), note, table("ranks", columns, lines)];
}

function traces(data) {
  const found = data.traces;
  if (!found) return [];
  const parts = [make("h2", {}, "Traces of torch's profiler")];
  if (found.files.length) {
    const place = (path) => (path.startsWith("/") ? make("a", { href: "file://" + path.split("/").map(encodeURIComponent).join("/") }, path) : path);
    const lines = found.files.map((file) => [String(file.node), file.rank == null ? "" : String(file.rank), amount(file.bytes, "B"), place(file.where)]);
    const some = found.files.length < found.in_all ? `${count(found.files.length, "trace")} of ${found.in_all.toLocaleString("en")}. ` : "";
    parts.push(make("p", { class: "soft" }, some + "Perfetto (ui.perfetto.dev) and chrome://tracing open them. This fetches all to your machine:"),
      make("pre", {}, `metaflow-gang traces ${data.pathspec} --attempt ${data.attempt} --to traces`),
      table("traces", [["node", "number"], ["rank", "number"], ["size", "number"], ["where", "text code"]], lines));
  }
  return [...parts, ...found.left_out.map((text) => make("p", { class: "soft" }, text))];
}

function pairs(values) {
  return make("table", { class: "pairs" }, Object.entries(values).map(([name, value]) =>
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
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show(shown));
addEventListener("resize", () => { if (shown) show(shown); });
