// Small charts: lines or dots over a horizontal axis, drawn as SVG.
import { format } from "./dom.js";

const [HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [190, 46, 10, 8, 24];
const SVG = new DOMParser().parseFromString("<svg/>", "text/html").querySelector("svg").namespaceURI;

function s(name, facts, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(facts)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// Round numbers between two ends: 1, 2 or 5 times a power of ten apart
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough);
  const found = [];
  for (let n = Math.ceil(low / step); n * step <= high + step * 1e-6; n++) found.push(n * step);
  return found;
}

function decades(low, high) {
  const found = [];
  for (let n = Math.floor(low); n <= Math.ceil(high); n++) for (const one of high - low > 2 ? [1] : [1, 2, 5]) found.push(n + Math.log10(one));
  return found.filter(one => one >= low && one <= high);
}

// `lines`: [{ name, points: [[x, y], ...], dots }]; `level`: { name, value } is a line across.
export function chart(title, lines, { x: named = String, level, marks, width: WIDTH = 360 } = {}) {
  const all = lines.flatMap(one => one.points), values = [...all.map(one => one[1]), ...(level ? [level.value] : [])];
  const log = !lines.some(one => one.dots) && Math.min(...values) > 0;
  const height = value => log ? Math.log10(value) : value;
  let [low, high] = [Math.min(...values.map(height)), Math.max(...values.map(height))];
  if (!log) low = Math.min(low, 0);
  if (high - low < 1e-9) [low, high] = [low - .5, high + .5];
  let [first, last] = [Math.min(...all.map(one => one[0])), Math.max(...all.map(one => one[0]))];
  if (first === last) [first, last] = [first - 1, last + 1];
  const across = x => LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT);
  const up = y => HEIGHT - BOTTOM - (height(y) - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
  const said = lines.map(one => `${one.name}: from ${format(one.points[0][1])} to ${format(one.points.at(-1)[1])}`).join("; ");
  const picture = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${said}` });
  for (const one of log ? decades(low, high) : ticks(low, high, 4)) {
    const value = log ? 10 ** one : one, y = up(value);
    picture.append(s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
      s("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, Number(value.toPrecision(3)).toString()));
  }
  for (const one of marks ?? ticks(first, last, 4)) {
    const anchor = one === first ? "start" : one === last ? "end" : "middle";
    picture.append(s("text", { x: across(one), y: HEIGHT - 7, "text-anchor": anchor }, named(one)));
  }
  lines.forEach((one, place) => {
    if (one.dots) for (const [x, y] of one.points) picture.append(s("circle", { class: `line-${place}`, cx: across(x), cy: up(y), r: 3 }));
    else picture.append(s("polyline", { class: `line-${place}`, points: one.points.map(([x, y]) => `${across(x).toFixed(1)},${up(y).toFixed(1)}`).join(" ") }));
  });
  if (level) picture.append(s("line", { class: "level", x1: LEFT, x2: WIDTH - RIGHT, y1: up(level.value), y2: up(level.value) }));
  const key = (kind, name, dots) => {
    const item = document.createElement("li"), mark = s("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" });
    mark.append(dots ? s("circle", { class: kind, cx: 11, cy: 5, r: 3 }) : s("line", { class: kind, x1: 0, x2: 22, y1: 5, y2: 5 }));
    item.append(mark, name);
    return item;
  };
  const legend = document.createElement("ul"), figure = document.createElement("figure"), caption = document.createElement("figcaption");
  legend.append(...lines.map((one, place) => key(`line-${place}`, one.name, one.dots)), ...(level ? [key("level", level.name)] : []));
  figure.className = "chart";
  caption.textContent = title;
  figure.append(caption, picture, legend);
  return figure;
}
