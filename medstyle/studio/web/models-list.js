// The choice of a model, shared by two pages.
import { run } from "./api.js";
import { h } from "./dom.js";

export class ModelChoice {
  constructor(changed) {
    this.select = h("select", { disabled: true, onchange: () => this.look() }, h("option", {}, "looking for models …"));
    this.target = h("select", { disabled: true });
    this.changed = changed;
    this.facts = null;
  }

  async load() {
    const { choices } = await run("models");
    if (!choices.length) throw new Error("No model is here yet: train one with `dvc repro`, or start the studio with --model FOLDER.");
    this.select.replaceChildren(...choices.map(one => h("option", { value: one.model }, one.label)));
    this.select.disabled = false;
    await this.look();
  }

  async look() {
    const asked = this.select.value;
    this.facts = null; // until the answer is there, nothing is done with the model chosen before
    try {
      const facts = await run("model", { name: asked });
      if (asked !== this.select.value) return;
      this.facts = facts;
      this.target.replaceChildren(...this.facts.targets.map(one => h("option", { value: one.name }, one.label)));
      this.target.value = this.facts.target;
      this.target.disabled = this.facts.targets.length < 2;
      this.changed(null);
    } catch (error) {
      this.facts = null;
      this.changed(error);
    }
  }
}
