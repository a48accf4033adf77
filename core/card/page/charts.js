// Charts of the card, drawn by hand: Metaflow's own components need a script of more than a megabyte.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const COLOURS = 8;
const TIMES = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];
const CHARACTER = 6.2;  // pixels of one in an axis, on average

// An element with attributes and children; text is never taken for HTML.
function make(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
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

function parts(whole, of, names) {
  const rest = whole % of;
  return `${Math.floor(whole / of)} ${names[0]}` + (rest ? ` ${rest} ${names[1]}` : "");
}

function duration(seconds) {
  if (seconds == null) return "";
  if (seconds < 0.005) return "0 s";
  if (seconds < 0.095) return seconds.toFixed(2) + " s";
  if (seconds < 9.95) return Number(seconds.toFixed(1)) + " s";
  if (seconds < 119.5) return Math.round(seconds) + " s";
  if (seconds < 7170) return parts(Math.round(seconds), 60, ["min", "s"]);
  if (seconds < 48 * 3600) return parts(Math.round(seconds / 60), 60, ["h", "min"]);
  return parts(Math.round(seconds / 3600), 24, ["d", "h"]);
}

function amount(value, unit) {
  if (value == null) return "";
  if (!unit) return Number(value.toPrecision(6)).toLocaleString("en", { maximumSignificantDigits: 6 });
  if (unit === "%") return Math.round(value) + " %";
  const [base, names] = unit === "B" ? [1024, ["", "Ki", "Mi", "Gi", "Ti"]] : [1000, ["", "k", "M", "G", "T"]];
  let index = 0;
  while (Math.abs(value) >= base && index < names.length - 1) { value /= base; index += 1; }
  return Number(value.toPrecision(3)) + " " + names[index] + unit;
}

function colour(index) { return `var(--c${index % COLOURS})`; }

function phaseColour(index) { return `var(--p${index})`; }

// Round moments from low to high, in seconds: at most so many.
function timeTicks(low, high, count) {
  const raw = (high - low) / count;
  const step = TIMES.find((value) => value >= raw) || Math.ceil(raw / 604800) * 604800;
  return steps(low, high, step);
}

// Round values; the first and the last are the ends of the axis.
function valueTicks(low, high, count) {
  const step = round((high - low) / count);
  return steps(Math.floor(low / step + 1e-9) * step, Math.ceil(high / step - 1e-9) * step, step);
}

function steps(low, high, step) {
  const found = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-6; index += 1) found.push(index * step);
  return found;
}

function panel(title, note, ...children) {
  return make("div", { class: "chart" }, make("div", { class: "row" }, make("h3", {}, title), make("span", { class: "soft note" }, note)), children);
}

// Lines over a common horizontal axis. lines: [{label, points: [[x, y or null], ...], band: [[x, low, high], ...]}]
function lineChart(title, lines, { width, unit = "", low = null, high = null, from = null, until = null, time = false, note = "" }) {
  const height = 168, right = 14, top = 8, bottom = 22;
  const known = lines.flatMap((line) => line.points.filter(([, y]) => y != null).concat((line.band || []).flatMap(([x, a, b]) => [[x, a], [x, b]])));
  const xs = known.map(([x]) => x), ys = known.map(([, y]) => y);
  const x0 = from ?? Math.min(...xs), x1 = Math.max(until ?? Math.max(...xs), x0 + (time ? 1 : 1e-9));
  let y0 = low ?? Math.min(...ys), y1 = high ?? Math.max(...ys);
  if (y1 <= y0) { y1 = y0 + (Math.abs(y0) * 0.1 || 1); if (low == null) y0 -= Math.abs(y0) * 0.1; }
  const marks = unit === "%" ? [0, 50, 100] : valueTicks(y0, y1, 3);
  [y0, y1] = [marks[0], marks[marks.length - 1]];
  const labels = marks.map((y) => amount(y, unit));
  const left = 12 + CHARACTER * Math.max(time ? 0 : 4, ...labels.map((text) => text.length));
  const place = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const rise = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  marks.forEach((y, index) => picture.append(
    draw("line", { x1: left, x2: width - right, y1: rise(y), y2: rise(y), class: "grid" }),
    draw("text", { x: left - 6, y: rise(y) + 4, "text-anchor": "end" }, labels[index])));
  const across = time ? timeTicks(x0, x1, width / 75) : x1 - x0 > 1e-6 ? steps(x0, x1, round((x1 - x0) / (width / 100))) : [x0];
  for (const x of across) {
    const text = time ? duration(x) : amount(x, "");
    const at = Math.min(place(x), width - 2 - (text.length * CHARACTER) / 2);
    picture.append(draw("line", { x1: place(x), x2: place(x), y1: height - bottom, y2: height - bottom + 4, class: "grid" }),
      draw("text", { x: at, y: height - 5, "text-anchor": "middle" }, text));
  }
  if (!time) picture.append(draw("text", { x: left - 12, y: height - 5, "text-anchor": "end" }, "step"));
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
    const drawn = line.points.filter(([, y]) => y != null);
    if (drawn.length === 1) picture.append(draw("circle", { cx: place(drawn[0][0]), cy: rise(drawn[0][1]), r: 2.5, fill: colour(index) }));
    picture.append(draw("path", { d: path, fill: "none", stroke: colour(index), "stroke-width": 1.6, "stroke-linejoin": "round" }));
  });
  const box = panel(title, note, picture, lines.length > 1 ? legend(lines.map((line) => line.label)) : null);
  const cursor = draw("line", { y1: top, y2: height - bottom, class: "cursor", visibility: "hidden" });
  picture.append(cursor);
  pointed(picture, (share) => {
    const x = x0 + ((share * width - left) / (width - left - right)) * (x1 - x0);
    const near = lines.map((line) => nearest(line.points, x)).filter((point) => point);
    if (!near.length || x < x0 || x > x1) return null;
    fill(cursor, { x1: place(near[0][0]), x2: place(near[0][0]), visibility: "visible" }, []);
    return `${time ? duration(near[0][0]) : "step " + amount(near[0][0], "")}: ${near.slice(0, 8).map(([, y]) => amount(y, unit)).join(", ")}`;
  }, box.querySelector(".note"), note, () => cursor.setAttribute("visibility", "hidden"));
  return box;
}

// The least of 1, 2 or 5 times a power of ten that is no less.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= value * 0.999);
}

function nearest(points, x) {
  let found = null;
  for (const point of points) if (point[1] != null && (!found || Math.abs(point[0] - x) < Math.abs(found[0] - x))) found = point;
  return found;
}

// While the pointer is over a picture its panel's note says what is there.
function pointed(picture, tell, note, otherwise, left = () => {}) {
  picture.addEventListener("pointermove", (event) => {
    const spot = picture.getBoundingClientRect();
    const text = tell((event.clientX - spot.left) / spot.width, (event.clientY - spot.top) / spot.height);
    if (text) note.textContent = text;
  });
  picture.addEventListener("pointerleave", () => { note.textContent = otherwise; left(); });
}

function legend(labels, tone = colour) {
  return make("div", { class: "legend" }, labels.map((label, index) =>
    label == null ? null : make("span", {}, make("i", { style: `background:${tone(index)}` }), label)));
}

const SHADES = {
  light: [[228, 232, 239], [150, 184, 236], [60, 130, 190], [217, 98, 43]], dark: [[38, 46, 57], [52, 96, 168], [92, 190, 170], [250, 176, 70]],
};

function shades() { return SHADES[matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"]; }

// From the panel's colour over blue to orange, so that both a hot and an idle node stand out.
function shade(part, stops) {
  const place = Math.min(0.9999, Math.max(0, part)) * (stops.length - 1);
  const index = Math.floor(place), share = place - index;
  return stops[index].map((value, channel) => Math.round(value + (stops[index + 1][channel] - value) * share));
}

// One row for each node, one column for each moment; the scale is below, the mean and the highest beside the title.
function heatMap(title, rows, scale, { unit = "%", xs = [0, 1], width }) {
  const columns = Math.max(1, ...rows.map((row) => row.length));
  const height = Math.min(320, Math.max(120, rows.length * 4)), stops = shades();
  const canvas = make("canvas", { width: columns, height: rows.length, style: `height:${height}px` });
  const context = canvas.getContext("2d");
  const picture = context.createImageData(columns, rows.length);
  rows.forEach((row, node) => row.forEach((value, column) => {
    if (value != null) picture.data.set([...shade(value / (scale || 1), stops), 255], 4 * (node * columns + column));
  }));
  context.putImageData(picture, 0, 0);
  const now = rows.map((row) => row[row.length - 1]).filter((value) => value != null);
  const mean = now.reduce((sum, value) => sum + value, 0) / Math.max(1, now.length);
  const note = now.length ? `last ${amount(mean, unit)} on average, ${amount(Math.max(...now), unit)} at most` : "";
  const last = rows.length - 1;
  const nodes = [0, 1, 2, 3].map((part) => make("span", {}, String(Math.round((last * part) / 3))));
  const every = timeTicks(xs[0], xs[1], width / 85).filter((x) => x > xs[0] + 0.04 * (xs[1] - xs[0]) && x < xs[0] + 0.93 * (xs[1] - xs[0]));
  const times = every.map((x) => make("span", { style: `left:${(100 * (x - xs[0])) / (xs[1] - xs[0])}%` }, duration(x)));
  const gradient = `background:linear-gradient(90deg,${stops.map((rgb) => `rgb(${rgb})`).join(",")})`;
  const box = panel(title, note,
    make("div", { class: "heat" }, make("div", { class: "nodes" }, nodes), canvas, make("div", { class: "name" }, "node"), make("div", { class: "times" }, times)),
    make("div", { class: "scale" }, make("span", {}, amount(0, unit)), make("i", { style: gradient }), make("span", {}, amount(scale, unit))));
  pointed(canvas, (across, down) => {
    const node = Math.min(last, Math.max(0, Math.floor(down * rows.length)));
    const column = Math.min(columns - 1, Math.max(0, Math.floor(across * columns)));
    const value = rows[node][column];
    return `node ${node}, ${duration(xs[0] + across * (xs[1] - xs[0]))}: ${value == null ? "nothing known" : amount(value, unit)}`;
  }, box.querySelector(".note"), note);
  return box;
}

// One bar for each row. bars: [{label, parts: [[from, to, colour index], ...], mark: second or null}]
function timeline(bars, names, end, width) {
  const rowHeight = 20, top = 4, height = bars.length * rowHeight + top + 22;
  const left = 14 + CHARACTER * Math.max(...bars.map((bar) => bar.label.length));
  const place = (second) => left + (second / end) * (width - left - 16);
  const picture = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Phases of each node" });
  for (const second of timeTicks(0, end, width / 110)) {
    const text = duration(second);
    picture.append(
      draw("line", { x1: place(second), x2: place(second), y1: top, y2: height - 20, class: "grid" }),
      draw("text", { x: Math.min(place(second), width - 2 - (text.length * CHARACTER) / 2), y: height - 6, "text-anchor": "middle" }, text));
  }
  bars.forEach((bar, row) => {
    const y = top + row * rowHeight;
    picture.append(draw("text", { x: left - 8, y: y + 14, "text-anchor": "end" }, bar.label));
    for (const [from, to, index] of bar.parts)
      picture.append(draw("rect", { x: place(from), y: y + 3, width: Math.max(1, place(to) - place(from)), height: rowHeight - 7, rx: 2, fill: phaseColour(index) },
        draw("title", {}, `${bar.label}: ${names[index]} ${duration(to - from)}`)));
    if (bar.mark != null)
      picture.append(draw("path", { d: `M${place(bar.mark) - 4} ${y + 5} l8 9 m0 -9 l-8 9`, class: "mark" }));
  });
  return picture;
}
