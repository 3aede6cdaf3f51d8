// Drop, read the verdict, choose a model, translate, compare, download.
import { run, send, start } from "./api.js";
import { check, field, h, problem, warning } from "./dom.js";
import { dropzone } from "./drop.js";
import { ModelChoice } from "./models-list.js";
import { Viewer } from "./viewer.js";

const SHIFT = "so that a shift between the scans shows as a difference.";
const FRAMES = {
  same: () => h("p", { class: "soft" }, "Both scans have the same frame of reference; a movement between them still shows as a difference."),
  other: () => warning(`The frames of reference do not match: nothing says that the two scans lie in the same place, ${SHIFT}`),
  unknown: () => warning(`At least one scan has no frame of reference: the positions in the headers were trusted, ${SHIFT}`),
};

class Translate {
  constructor() {
    this.title = "Translate";
    this.viewer = new Viewer([
      h("p", {}, "What you drop is shown here, and the synthetic image beside it."),
      h("p", {}, "It stays on the machine that runs the studio, and is deleted when the session ends."),
    ]);
    this.choice = new ModelChoice(error => this.chosen(error));
    this.verdict = h("section", { class: "card", "aria-live": "polite", hidden: true });
    this.uncertainty = h("input", { type: "checkbox" });
    this.force = h("input", { type: "checkbox" });
    this.as = h("input", { type: "checkbox", onchange: () => this.inspect() });
    this.asTitle = h("span", {}, "Treat the image as the model's source");
    this.sharpness = h("input", { type: "range", min: 0, max: 1, step: .05, value: 1 });
    this.sharp = field("Sharpness: left has the least error, right looks most like a real scan", this.sharpness);
    this.unsure = check("Map of uncertainty (takes five times as long)", this.uncertainty);
    this.go = h("button", { class: "main", type: "button", disabled: true, onclick: () => this.translate() }, "Translate");
    this.stop = h("button", { type: "button", hidden: true, onclick: () => this.job?.cancel() }, "Cancel");
    this.bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Progress of the translation" });
    this.said = h("p", { class: "soft", role: "status" });
    this.made = h("section", { class: "card", hidden: true, "aria-live": "polite" });
    this.about = h("p", { class: "soft" });
    this.realSaid = h("div", { role: "status" });
    this.beside = h("div", {});
    this.compare = h("details", { class: "card", hidden: true }, h("summary", {}, "Compare with a real scan"),
      h("p", { class: "soft" }, "A real scan of the target contrast, of the same patient. Its difference is laid over the result."),
      this.beside,
      dropzone({ id: "real", title: "Drop the real scan", hint: "DICOM folder or zip, NIfTI, NRRD, MetaImage",
        taken: files => this.takeReal(files) }), this.realSaid);
    this.element = h("div", { class: "desk" },
      h("div", { class: "side" },
        h("section", { class: "card" },
          h("h1", {}, "Translate"),
          dropzone({ id: "files", title: "Drop a study, a volume, a picture or a clip",
            hint: "DICOM folder or zip, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF, MP4", taken: files => this.take(files) })),
        this.verdict,
        h("section", { class: "card" },
          field("Model", this.choice.select), this.about, field("Target", this.choice.target), this.sharp, this.unsure,
          h("details", {}, h("summary", {}, "Overrides"),
            h("label", { class: "check" }, this.as, this.asTitle),
            check("Translate anyway, even if it does not resemble the training images", this.force)),
          h("div", { class: "row" }, this.go, this.stop), this.bar, this.said),
        this.compare),
      this.viewer.element);
    this.viewer.below.append(this.made);
    this.choice.load().catch(error => this.chosen(error));
    addEventListener("renewed", () => this.lost());
  }

  // the files are gone; what is shown stays
  lost() {
    if (!this.set) return;
    this.set = this.result = this.job = null;
    this.forgetReal();
    this.go.disabled = true;
    this.made.hidden = true;
    this.verdict.replaceChildren(h("h2", {}, "Verdict"), problem("These files are deleted; drop them again."));
  }

  chosen(error) {
    const facts = this.choice.facts;
    this.about.replaceChildren(error ? problem(error.message)
      : `From ${facts.source.label}` + (facts.contrasts.length ? ` with ${facts.contrasts.join(" and ")}` : "") + ".");
    this.unsure.hidden = this.compare.hidden = Boolean(!facts || facts.picture);
    this.sharp.hidden = facts?.sharpness == null;
    if (!this.sharp.hidden) this.sharpness.value = facts.sharpness;
    if (facts) this.asTitle.textContent = `Treat the image as ${facts.source.label}`;
    if (this.set) this.inspect();
  }

  async take(files) {
    this.job?.cancel().catch(() => {});
    if (this.set) this.forgetReal(); // it belongs to the study before
    this.set = this.result = null;
    this.viewer.clear();
    this.go.disabled = true;
    this.made.hidden = true;
    this.said.textContent = "";
    this.verdict.hidden = false;
    const bar = h("progress", { max: files.length, value: 0, "aria-label": "Files sent" });
    const count = h("p", {}, `Sending ${files.length} ${files.length === 1 ? "file" : "files"} …`);
    this.verdict.replaceChildren(h("h2", {}, "Verdict"), count, bar);
    try {
      this.set = await send(files, done => { bar.value = done; });
      this.seen = null;
      await this.inspect();
    } catch (error) {
      this.verdict.replaceChildren(h("h2", {}, "Verdict"), problem(error.message));
    }
  }

  async inspect() {
    const turn = this.turn = (this.turn ?? 0) + 1; // what was asked before is no longer shown
    this.go.disabled = true;
    if (!this.set || !this.choice.facts) return this.waits();
    const given = { set: this.set, model: this.choice.select.value, as_source: this.as.checked };
    this.verdict.replaceChildren(h("h2", {}, "Verdict"), h("p", { class: "soft" }, "Looking at it …"));
    try {
      const found = await run("inspect", given);
      if (turn !== this.turn) return;
      this.judged(found);
      const first = found.images.find(one => one.view && one.use.startsWith("used as")) ?? found.images.find(one => one.view);
      if (first && this.seen !== first.item) await this.look(first.item);
    } catch (error) {
      if (turn === this.turn) this.verdict.replaceChildren(h("h2", {}, "Verdict"), problem(error.message));
    }
  }

  waits() {
    if (this.set) this.verdict.replaceChildren(h("h2", {}, "Verdict"), h("p", { class: "soft" }, "Waiting for the model …"));
  }

  judged(found) {
    const used = found.images.filter(one => one.use.startsWith("used as"));
    this.go.disabled = !used.length;
    const use = one => h("span", { class: one.use === "refused" ? "bad" : one.use === "not used" ? "soft" : "fine" }, one.use);
    const rows = found.images.map(one => h("li", {}, one.what, h("br"), use(one), one.use === "refused" && one.why ? `: ${one.why}` : "",
      one.doubts.map(text => warning(text)), " ",
      one.view && h("button", { type: "button", onclick: () => this.look(one.item) }, "Show")));
    const lost = found.refused.map(one => h("li", {}, h("strong", {}, one.file), h("br"), `${one.code}: ${one.why}`));
    const more = Object.values(found.counts).reduce((sum, one) => sum + one, 0);
    const other = found.images.find(one => one.view && one.use === "not used" && one.domain === this.choice.target.value);
    this.beside.replaceChildren(other ? h("p", {}, h("button", { type: "button", onclick: () => this.useReal(this.set, "The scan in the study itself.") },
      `Use the ${this.choice.target.selectedOptions[0].label} in this study`)) : "");
    this.verdict.replaceChildren(h("h2", {}, "Verdict"),
      h("p", {}, used.length ? `${used.length} of ${found.images.length} ${found.images.length === 1 ? "image" : "images"} `
        + "will be translated." : "Nothing here can be translated."),
      !used.length && found.why ? problem(found.why) : "",
      h("ul", { class: "list" }, rows),
      lost.length ? h("details", { open: !used.length }, h("summary", {}, `${more} of ${found.files} files not used`), h("ul", { class: "list" }, lost)) : "");
  }

  async look(item) {
    try {
      const { images, base } = await run("view", { set: this.set, model: this.choice.select.value, item });
      this.seen = item;
      await this.viewer.show(base, images[0]);
    } catch (error) {
      this.said.replaceChildren(problem(error.message));
    }
  }

  async translate() {
    const given = { set: this.set, model: this.choice.select.value, target: this.choice.target.value,
      sharpness: this.sharp.hidden ? null : this.sharpness.valueAsNumber,
      uncertainty: this.uncertainty.checked && !this.choice.facts.picture, force: this.force.checked, as_source: this.as.checked };
    this.go.disabled = true;
    this.made.hidden = true;
    this.bar.hidden = this.stop.hidden = false;
    this.bar.value = 0;
    const told = job => {
      this.bar.value = job.progress;
      this.said.textContent = job.state === "waiting" ? "waiting for another job" : job.said;
    };
    try {
      this.job = await start("translate", given, told);
      const result = this.result = { ...await this.job.done, model: given.model, set: given.set };
      this.said.textContent = "Done.";
      await this.done(result);
    } catch (error) {
      this.said.replaceChildren(error.message === "Cancelled." ? "Cancelled." : problem(error.message));
    }
    this.job = null;
    this.go.disabled = !this.set;
    this.bar.hidden = this.stop.hidden = true;
  }

  async done(result) {
    const judged = image => ({ ok: h("span", { class: "fine" }, "resembles the training images"),
      warn: h("span", { class: "doubt" }, "differs from the training images"),
      refuse: h("span", { class: "bad" }, "does not resemble the training images") })[image.ood.verdict] ?? image.ood.verdict;
    this.made.hidden = false;
    this.made.replaceChildren(h("h2", {}, "Result"),
      h("ul", { class: "list" }, result.images.map((image, place) => h("li", {},
        `${image.from} → ${image.to}`, h("br"), judged(image), ` (${image.ood.score.toFixed(1)} SD)`,
        image.warnings.map(text => warning(text)), " ",
        result.images.length > 1 && h("button", { type: "button", onclick: () => this.show(image) }, `Show ${place + 1}`)))),
      h("div", { class: "row" }, result.downloads.map(one =>
        h("a", { class: "button", href: `${result.base}${one.file}?save`, download: true }, `Download ${one.label}`))));
    await this.show(result.images[0]);
  }

  async show(image) {
    await this.viewer.show(this.result.base, image);
    if (this.real) await this.differ();
  }

  forgetReal() {
    this.real = null;
    this.realSaid.replaceChildren();
  }

  async takeReal(files) {
    this.realSaid.replaceChildren(h("p", { class: "soft" }, "Sending …"));
    try {
      this.useReal(await send(files, () => {}), `${files.length} ${files.length === 1 ? "file" : "files"}.`);
    } catch (error) {
      this.realSaid.replaceChildren(problem(error.message));
    }
  }

  useReal(set, words) {
    this.real = set;
    this.realSaid.replaceChildren(h("p", { class: "soft" }, words, this.result ? "" : " It is compared after the translation."));
    if (this.result) this.differ();
  }

  async differ() {
    const { item, number, target, synthetic } = this.viewer.image, { real, result } = this;
    if (!synthetic) return;
    this.realSaid.replaceChildren(h("p", { class: "soft" }, "Comparing …"));
    try {
      const found = await run("difference", { set: result.set, item, number, target, real, model: result.model, job: result.job });
      if (real !== this.real || result !== this.result || number !== this.viewer.image.number) return;
      const level = value => value >= 10 ? value.toFixed(0) : value.toPrecision(2);
      this.realSaid.replaceChildren(
        h("p", {}, `Mean absolute difference in the body: ${level(found.mean)} ${found.unit}, ${(100 * found.share).toFixed(1)} % of the range of ${found.what}. `
          + "Warm colours: the real scan is brighter; cold ones: darker."),
        found.same ? h("p", { class: "soft" }, "The grey levels of the real scan were brought to those of the model.") : "",
        found.covered < .99 ? warning(`The real scan shows ${(100 * found.covered).toFixed(0)} % of the body in the synthetic image.`) : "",
        FRAMES[found.frames]());
      await this.viewer.add("difference", { difference: found.base + found.difference, difference_window: found.difference_window }, 60);
    } catch (error) {
      if (real === this.real) this.realSaid.replaceChildren(problem(error.message));
    }
  }
}

export const make = () => new Translate();
