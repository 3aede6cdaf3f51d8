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
    try {
      this.facts = await run("model", { name: this.select.value });
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
