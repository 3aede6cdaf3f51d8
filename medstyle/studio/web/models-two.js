// Two models on one study, side by side.
import { run, send } from "./api.js";
import { field, h, problem } from "./dom.js";
import { dropzone } from "./drop.js";
import { Viewer } from "./viewer.js";

const WORDS = { ok: "resembles the training images", warn: "differs from the training images", refuse: "does not resemble the training images" };

export class TwoModels {
  constructor() {
    this.choices = [h("select", {}), h("select", {})];
    this.sent = h("p", { class: "soft", role: "status" }, "no study yet");
    this.go = h("button", { type: "button", class: "main", disabled: true, onclick: () => this.compare() }, "Compare");
    this.bar = h("progress", { max: 2, value: 0, hidden: true, "aria-label": "Progress of the comparison" });
    this.said = h("div", { role: "status" });
    this.viewer = new Viewer([h("p", {}, "Both results are shown here, in one window of grey levels.")]);
    this.element = h("section", { class: "card", "aria-label": "Two models on one study" }, h("h2", {}, "Two models on one study"),
      h("div", { class: "two" },
        dropzone({ id: "both", title: "Drop a study", hint: "what you would drop on “Translate”", taken: files => this.take(files) }),
        h("div", {}, field("Left", this.choices[0]), field("Right", this.choices[1]),
          h("div", { class: "row" }, this.go, this.sent), this.bar, this.said)),
      this.viewer.element);
    addEventListener("renewed", () => {
      if (this.set) this.sent.textContent = "deleted; drop it again";
      this.set = null;
      this.go.disabled = true;
    });
  }

  offer(choices) {
    this.choices.forEach((select, place) => {
      const before = select.value;
      select.replaceChildren(...choices.map(one => h("option", { value: one.model }, one.label)));
      const newest = choices.find(one => /^\d+$/.test(one.model)); // beside what the studio offers first
      select.value = choices.some(one => one.model === before) ? before : (place && newest ? newest : choices[0])?.model;
    });
  }

  async take(files) {
    this.sent.textContent = "sending …";
    this.go.disabled = true;
    try {
      this.set = await send(files, () => {});
      this.sent.textContent = `${files.length} ${files.length === 1 ? "file" : "files"}`;
      this.go.disabled = false;
    } catch (error) {
      this.sent.replaceChildren(problem(error.message));
    }
  }

  async compare() {
    this.go.disabled = true;
    this.bar.hidden = false;
    this.said.replaceChildren();
    const names = this.choices.map(one => one.selectedOptions[0].label);
    try {
      const made = [];
      for (const [place, { value }] of this.choices.entries()) {
        // what does not resemble the training images is compared as well: the verdict stands beside it
        made.push(await run("translate", { set: this.set, model: value, force: true }, job => { this.bar.value = place + job.progress; }));
      }
      const both = made[0].images.map(one => [one, made[1].images.find(other => other.item === one.item && other.kind === one.kind)]);
      const pairs = both.filter(([, other]) => other);
      if (!pairs.length) throw new Error("The two models do not translate the same image.");
      this.said.replaceChildren(...pairs.map((pair, number) => h("p", {}, pairs.length > 1 && h("button", { type: "button", onclick: () => this.show(made, pair, names) }, `Show ${number + 1}`), " ",
        pair.map((one, place) => `${names[place]}: the source ${WORDS[one.ood.verdict]} (${one.ood.score.toFixed(1)} SD)`).join("; "), ".")));
      await this.show(made, pairs[0], names);
    } catch (error) {
      this.said.replaceChildren(problem(error.message));
    }
    this.bar.hidden = true;
    this.go.disabled = !this.set;
  }

  show(made, [left, right], names) {
    return this.viewer.show("", { kind: left.kind, titles: [`${names[0]}: ${left.to}`, `${names[1]}: ${right.to}`],
      source: made[0].base + left.synthetic, source_window: left.synthetic_window,
      synthetic: made[1].base + right.synthetic, synthetic_window: left.to === right.to ? left.synthetic_window : right.synthetic_window });
  }
}
