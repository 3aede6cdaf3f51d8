// Style a picture or a clip by exemplars.
import { send, start } from "./api.js";
import { check, field, h, problem, warning } from "./dom.js";
import { dropzone } from "./drop.js";
import { ModelChoice } from "./models-list.js";
import { Viewer } from "./viewer.js";

const CLASSICAL = { histogram_matching: "Histogram matching", neural_style: "Neural style (slow)" };

class Style {
  constructor() {
    this.title = "Style";
    this.viewer = new Viewer([h("p", {}, "Drop a picture or a clip, and one or several exemplars."),
      h("p", {}, "The preview has 256 pixels, and shows the first frame of a clip; the full size is a job of its own.")]);
    this.choice = new ModelChoice(error => this.chosen(error));
    this.sent = h("p", { class: "soft", role: "status" }, "nothing yet");
    this.given = h("p", { class: "soft", role: "status" }, "no exemplar yet");
    this.weights = h("div", {});
    this.how = h("select", { onchange: () => this.chosen() }, h("option", { value: "" }, "A model of pictures"),
      Object.entries(CLASSICAL).map(([value, name]) => h("option", { value }, name)));
    this.how.value = "histogram_matching";
    this.strength = h("input", { type: "range", min: 0, max: 1, step: .05, value: 1 });
    this.keep = h("input", { type: "checkbox" });
    this.seed = h("input", { type: "number", min: 0, step: 1, placeholder: "the exemplars decide" });
    this.size = h("input", { type: "number", min: 32, step: 1, placeholder: "the picture's own" });
    this.modelField = field("Model", this.choice.select);
    this.modelOnly = [this.modelField, field("Seed of a random style", this.seed), field("Brush: shorter side in pixels", this.size)];
    this.note = h("div", {});
    this.said = h("div", { role: "status" });
    this.bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Progress" });
    this.preview = h("button", { type: "button", onclick: () => this.make(true) }, "Preview");
    this.full = h("button", { type: "button", class: "main", onclick: () => this.make(false) }, "Full size");
    this.stop = h("button", { type: "button", hidden: true, onclick: () => this.job?.cancel() }, "Cancel");
    this.downloads = h("div", { class: "row" });
    this.element = h("div", { class: "desk" },
      h("div", { class: "side" },
        h("section", { class: "card" }, h("h1", {}, "Style"),
          dropzone({ id: "picture", title: "Drop a picture or a clip", hint: "PNG, JPEG, TIFF, WebP, MP4, WebM", folders: false,
            taken: files => this.take(files, "set", this.sent) }), this.sent,
          dropzone({ id: "exemplars", title: "Drop exemplars", hint: "pictures whose style is taken", folders: false,
            taken: files => this.take(files, "exemplars", this.given) }), this.given, this.weights),
        h("section", { class: "card" }, field("Method", this.how), this.modelOnly, this.note,
          field("Strength", this.strength), check("Keep the colours of the picture", this.keep),
          h("div", { class: "row" }, this.preview, this.full, this.stop), this.bar, this.said, this.downloads)),
      this.viewer.element);
    this.chosen();
    this.choice.load().catch(error => this.chosen(error));
    addEventListener("renewed", () => {
      for (const [name, where] of [["set", this.sent], ["exemplars", this.given]]) {
        if (this[name]) where.textContent = "deleted; drop it again";
        this[name] = null;
      }
      this.downloads.replaceChildren();
    });
  }

  chosen(error) {
    const own = this.how.value === "";
    for (const one of this.modelOnly) one.hidden = !own;
    this.note.replaceChildren(own && error ? problem(error.message)
      : own && this.choice.facts && !this.choice.facts.picture ? warning("This model translates scans; choose another one or a classical method.") : "");
  }

  async take(files, name, where) {
    where.textContent = "sending …";
    try {
      this[name] = await send(files, () => {});
      where.textContent = `${files.length} ${files.length === 1 ? "file" : "files"}`;
      if (name === "exemplars") {
        this.weight = files.map(() => h("input", { type: "range", min: 0, max: 1, step: .05, value: 1 }));
        this.weights.replaceChildren(...(files.length > 1 ? this.weight.map((one, place) => field(`Weight of exemplar ${place + 1}`, one)) : []));
      }
    } catch (error) {
      where.replaceChildren(problem(error.message));
    }
  }

  async make(preview) {
    if (!this.set) { this.said.replaceChildren(problem("Drop a picture or a clip first.")); return; }
    const own = this.how.value === "", number = input => input.value === "" ? null : input.valueAsNumber;
    const given = { set: this.set, exemplars: this.exemplars ?? null, method: own ? null : this.how.value, preview,
      strength: this.strength.valueAsNumber, keep_colour: this.keep.checked,
      ...(own ? { model: this.choice.select.value, seed: number(this.seed), size: number(this.size),
        weights: this.exemplars ? this.weight.map(one => one.valueAsNumber) : [] } : {}) };
    this.bar.hidden = this.stop.hidden = false;
    this.preview.disabled = this.full.disabled = true;
    const before = performance.now();
    try {
      this.job = await start("style", given, job => { this.bar.value = job.progress; });
      const result = await this.job.done;
      this.said.replaceChildren(h("p", {}, `${preview ? "Preview" : "Done"} in ${((performance.now() - before) / 1000).toFixed(1)} s.`));
      this.downloads.replaceChildren(...(preview ? [] : result.downloads.map(one =>
        h("a", { class: "button", href: `${result.base}${one.file}?save`, download: true }, `Download ${one.label}`))));
      await this.viewer.show(result.base, result.images[0]);
    } catch (error) {
      this.said.replaceChildren(problem(error.message));
    }
    this.bar.hidden = this.stop.hidden = true;
    this.preview.disabled = this.full.disabled = false;
  }
}

export const make = () => new Style();
