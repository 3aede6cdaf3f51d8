// What the raw data of the project hold.
import { run } from "./api.js";
import { chart } from "./chart.js";
import { h, problem, table } from "./dom.js";

class Data {
  constructor() {
    this.title = "Data";
    this.body = h("div", {}, h("p", { class: "soft" }, "Looking at the data …"));
    this.time = h("section", { class: "card", "aria-label": "Drift" }, h("h2", {}, "Drift over time"), h("p", { class: "soft" }, "Reading the inbox …"));
    this.element = h("div", { class: "page" }, h("h1", {}, "Data"), this.body, this.time);
    this.load();
    this.drift();
  }

  async load() {
    try {
      const found = await run("data");
      const [head, ...rows] = found.table;
      const parts = Object.entries(found.splits), names = [...new Set(parts.flatMap(([, of]) => Object.keys(of)))].sort();
      this.body.replaceChildren(h("p", { class: "soft" }, found.lead, " File names are not shown."),
        h("section", { class: "card" }, h("h2", {}, "Domains"), table(head, rows, "Domains")),
        parts.length ? h("section", { class: "card" }, h("h2", {}, "Subjects in each part of the slice store"),
          table(["Part", ...names], parts.map(([part, of]) => [part, ...names.map(one => of[one] ?? 0)]), "Splits")) : "",
        ...found.domains.map(one => h("section", { class: "card" },
          h("h2", {}, `${one.name}: ${one.number} images of ${one.subjects} subjects`), h("p", { class: "soft" }, `Recognised by ${one.why}.`),
          h("div", { class: "thumbs" }, one.images.map(([subject, key, data]) => h("figure", {},
            h("img", { src: data, alt: `${one.name}, image ${key} of ${subject}` }), h("figcaption", {}, subject)))))),
        h("section", { class: "card" }, h("h2", {}, "Left out"),
          table(["Reason", "Images"], found.left, "Left out")));
    } catch (error) {
      this.body.replaceChildren(problem(error.message));
    }
  }

  async drift() {
    const show = (...what) => this.time.replaceChildren(h("h2", {}, "Drift over time"), ...what);
    try {
      const found = await run("drift");
      if (!found.points.length) return show(h("p", { class: "soft" }, "No study from the inbox was translated by this model yet."));
      const day = seconds => new Date(seconds * 1000).toISOString().slice(0, 10);
      const [first, last] = [found.points[0][0], found.points.at(-1)[0]];
      const marks = last - first < 86400 ? [first] : [first, (first + last) / 2, last];
      const alarm = found.p < found.alarm;
      show(h("p", { class: alarm ? "warning" : "" }, alarm ? "The images differ from the training images. " : "No sign of drift. ",
        `Of ${found.images} images of the last ${found.days} days, ${found.beyond} deviate more than 99 % of the training images; `
        + `${found.expected.toFixed(1)} are expected (p = ${found.p.toPrecision(2)}; alarm below ${found.alarm}).`),
      h("div", { class: "wide" }, chart("Distance to the training images, in SD, by day of the translation",
        [{ name: "an image from the inbox", points: found.points, dots: true }],
        { x: day, marks, width: 720, level: { name: "99 % of the training images are below", value: found.limit } })));
    } catch (error) {
      show(problem(error.message));
    }
  }
}

export const make = () => new Data();
