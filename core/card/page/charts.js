// Charts of the card, drawn by hand: Metaflow's own components need a script of more than a megabyte.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const COLOURS = 8;

// An element with attributes and children; text is never taken for HTML.
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  return fill(element, attributes, children);
}

function draw(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) if (value != null) element.setAttribute(key, value);
  for (const child of children.flat()) if (child != null) element.append(child);
  return element;
}

// "AB.z": one of 64 levels of the scale per moment, a dot where nothing is known.
function levels(text, scale) {
  return Array.from(text, (letter) => (letter === "." ? null : (LEVELS.indexOf(letter) / 63) * scale));
}

function duration(seconds) {
  if (seconds == null) return "";
  if (seconds < 10) return seconds.toFixed(seconds < 1 ? 2 : 1) + " s";
  if (seconds < 120) return Math.round(seconds) + " s";
  if (seconds < 7200) return Math.floor(seconds / 60) + " min " + (Math.round(seconds) % 60) + " s";
  return Math.floor(seconds / 3600) + " h " + (Math.floor(seconds / 60) % 60) + " min";
}

function amount(value, unit) {
  if (value == null) return "";
  if (unit === "%") return Math.round(value) + " %";
  const binary = unit.startsWith("B");
  const step = binary ? 1024 : 1000;
  const names = binary ? ["", "Ki", "Mi", "Gi", "Ti"] : ["", "k", "M", "G", "T"];
  let index = 0;
  while (Math.abs(value) >= step && index < names.length - 1) { value /= step; index += 1; }
  return Number(value.toPrecision(3)) + " " + names[index] + unit;
}

function colour(index) { return "var(--c" + (index % COLOURS) + ")"; }

function phaseColour(index) { return "var(--p" + index + ")"; }

// Round moments on a time axis, in seconds.
function ticks(high, count) {
  const raw = high / count, power = 10 ** Math.floor(Math.log10(raw));
  const steps = [1, 2, 5, 10].map((factor) => factor * power).concat([30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400]);
  const step = Math.min(...steps.filter((value) => value >= raw && (raw < 10 || value % 30 === 0 || value >= 864000 || value <= 10)));
  const found = [];
  for (let value = 0; value <= high * 1.0001; value += step) found.push(value);
  return found;
}

// Lines over a common horizontal axis. lines: [{label, points: [[x, y or null], ...], band: [[x, low, high], ...]}]
function lineChart(title, lines, { unit = "", low = null, high = null, xText = duration, note = "" } = {}) {
  const width = 460, height = 170, left = 62, right = 8, top = 8, bottom = 22;
  const points = lines.flatMap((line) => line.points.concat((line.band || []).flatMap(([x, a, b]) => [[x, a], [x, b]])));
  const known = points.filter(([, y]) => y != null);
  const box = make("div", { class: "chart" }, make("div", { class: "row" }, make("h3", {}, title), make("span", { class: "soft" }, note)));
  if (!known.length) return fill(box, {}, [make("p", { class: "soft" }, "Nothing yet.")]);
  const xs = known.map(([x]) => x), ys = known.map(([, y]) => y);
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1e-9);
  let y0 = low ?? Math.min(...ys), y1 = high ?? Math.max(...ys);
  if (y0 === y1) { y0 -= low == null ? Math.abs(y0) * 0.1 || 0.5 : 0; y1 += Math.abs(y1) * 0.1 || 0.5; }
  const place = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const rise = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const part of [0, 0.5, 1]) {
    const y = y0 + part * (y1 - y0);
    picture.append(
      draw("line", { x1: left, x2: width - right, y1: rise(y), y2: rise(y), stroke: "var(--line)" }),
      draw("text", { x: left - 6, y: rise(y) + 4, "text-anchor": "end" }, unit ? amount(y, unit) : Number(y.toPrecision(3)) + ""));
  }
  for (const [x, anchor] of [[x0, "start"], [(x0 + x1) / 2, "middle"], [x1, "end"]])
    picture.append(draw("text", { x: place(x), y: height - 6, "text-anchor": anchor }, xText(x)));
  lines.forEach((line, index) => {
    if (line.band && line.band.length) {
      const upper = line.band.map(([x, , b]) => `${place(x)},${rise(b)}`);
      const lower = line.band.map(([x, a]) => `${place(x)},${rise(a)}`).reverse();
      picture.append(draw("polygon", { points: upper.concat(lower).join(" "), fill: colour(index), opacity: 0.18 }));
    }
    let path = "", pen = "M";
    for (const [x, y] of line.points) {
      if (y == null) { pen = "M"; continue; }
      path += `${pen}${place(x).toFixed(1)} ${rise(Math.min(y1, Math.max(y0, y))).toFixed(1)}`;
      pen = "L";
    }
    const only = line.points.filter(([, y]) => y != null);
    if (only.length === 1) picture.append(draw("circle", { cx: place(only[0][0]), cy: rise(only[0][1]), r: 2.5, fill: colour(index) }));
    picture.append(draw("path", { d: path, fill: "none", stroke: colour(index), "stroke-width": 1.6, "stroke-linejoin": "round" }));
  });
  return fill(box, {}, [picture, lines.length > 1 ? legend(lines.map((line) => line.label)) : null]);
}

function legend(labels, tone = colour) {
  return make("div", { class: "legend" }, labels.map((label, index) =>
    make("span", {}, make("i", { style: `background:${tone(index)}` }), label)));
}

// One row for each node, one column for each moment; the mean and the highest are beside the title.
function heatMap(title, rows, scale, { unit = "%", xs = [0, 1], first = "node 0", last = "" } = {}) {
  const columns = Math.max(1, ...rows.map((row) => row.length));
  const canvas = make("canvas", { width: columns, height: rows.length, style: `height:${Math.min(320, Math.max(110, rows.length * 6))}px` });
  const context = canvas.getContext("2d");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const picture = context.createImageData(columns, rows.length);
  rows.forEach((row, node) => row.forEach((value, column) => {
    const [red, green, blue] = value == null ? (dark ? [27, 32, 39] : [246, 247, 249]) : shade(value / (scale || 1), dark);
    picture.data.set([red, green, blue, 255], 4 * (node * columns + column));
  }));
  context.putImageData(picture, 0, 0);
  const now = rows.map((row) => row[row.length - 1]).filter((value) => value != null);
  const mean = now.length ? now.reduce((sum, value) => sum + value, 0) / now.length : null;
  const note = now.length ? `now ${amount(mean, unit)} on average, ${amount(Math.max(...now), unit)} at most` : "";
  canvas.addEventListener("mousemove", (event) => {
    const spot = canvas.getBoundingClientRect();
    const node = Math.min(rows.length - 1, Math.floor(((event.clientY - spot.top) / spot.height) * rows.length));
    const column = Math.min(columns - 1, Math.floor(((event.clientX - spot.left) / spot.width) * columns));
    const value = (rows[node] || [])[column];
    canvas.title = `node ${node}: ${value == null ? "nothing known" : amount(value, unit)}`;
  });
  return make("div", { class: "chart" },
    make("div", { class: "row" }, make("h3", {}, title), make("span", { class: "soft" }, note)),
    canvas,
    make("div", { class: "row soft" }, make("span", {}, duration(xs[0])), make("span", {}, `${first} at the top, ${last} at the bottom`), make("span", {}, duration(xs[1]))));
}

// From the panel's colour over blue to a strong orange, so that both a hot and an idle node stand out.
function shade(part, dark) {
  const stops = dark ? [[35, 42, 52], [52, 96, 168], [92, 190, 170], [250, 176, 70]] : [[232, 236, 242], [150, 184, 236], [60, 130, 190], [217, 98, 43]];
  const place = Math.min(0.9999, Math.max(0, part)) * (stops.length - 1);
  const index = Math.floor(place), share = place - index;
  return stops[index].map((value, channel) => Math.round(value + (stops[index + 1][channel] - value) * share));
}

// One bar for each row. bars: [{label, parts: [[from, to, colour index], ...], mark: second or null}]
function timeline(bars, names, end) {
  const rowHeight = 20, left = 86, width = Math.max(300, Math.min(960, innerWidth - 56)), top = 4, height = bars.length * rowHeight + top + 22;
  const place = (second) => left + (second / (end || 1)) * (width - left - 12);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Phases of each node" });
  for (const second of ticks(end || 1, width / 160)) {
    if (second > end * 1.001) continue;
    picture.append(
      draw("line", { x1: place(second), x2: place(second), y1: top, y2: height - 20, stroke: "var(--line)" }),
      draw("text", { x: place(second), y: height - 6, "text-anchor": "middle" }, duration(second)));
  }
  bars.forEach((bar, row) => {
    const y = top + row * rowHeight;
    picture.append(draw("text", { x: left - 8, y: y + 13, "text-anchor": "end" }, bar.label));
    for (const [from, to, index] of bar.parts)
      picture.append(draw("rect", { x: place(from), y: y + 3, width: Math.max(1, place(to) - place(from)), height: rowHeight - 7, rx: 2, fill: phaseColour(index) },
        draw("title", {}, `${bar.label}: ${names[index]} ${duration(to - from)}`)));
    if (bar.mark != null)
      picture.append(draw("path", { d: `M${place(bar.mark) - 4} ${y + 2} l8 ${rowHeight - 6} m0 ${6 - rowHeight} l-8 ${rowHeight - 6}`, stroke: "var(--bad)", "stroke-width": 2.2 }));
  });
  return make("div", { class: "chart" }, legend(names, phaseColour), picture);
}
