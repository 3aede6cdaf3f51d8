// What the raw data of the project hold.
import { run } from "./api.js";
import { h, problem, table } from "./dom.js";

class Data {
  constructor() {
    this.title = "Data";
    this.body = h("div", {}, h("p", { class: "soft" }, "Looking at the data …"));
    this.element = h("div", { class: "page" }, h("h1", {}, "Data"), this.body);
    this.load();
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
          h("div", { class: "thumbs" }, one.images.map(([key, data]) => h("figure", {},
            h("img", { src: data, alt: `${one.name}, image ${key}` }), h("figcaption", {}, key)))))),
        h("section", { class: "card" }, h("h2", {}, "Left out"),
          table(["Images", "Reason"], found.left.map(([why, count]) => [count, why]), "Left out")));
    } catch (error) {
      this.body.replaceChildren(problem(error.message));
    }
  }
}

export const make = () => new Data();
