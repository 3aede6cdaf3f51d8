// Versions, what was measured, and who is champion.
import { run } from "./api.js";
import { chart } from "./chart.js";
import { confirmed, h, problem, table } from "./dom.js";
import { marked } from "./viewer.js";
import { TwoModels } from "./models-two.js";

class Models {
  constructor() {
    this.title = "Models";
    this.said = h("div", { role: "status" });
    this.list = h("section", { class: "card" }, h("p", { class: "soft" }, "Asking the registry …"));
    this.more = h("section", { class: "card", hidden: true, "aria-live": "polite" });
    this.back = h("button", { type: "button", hidden: true, onclick: () => this.rollback() }, "Roll back");
    this.element = h("div", { class: "page" },
      h("div", { class: "row" }, h("h1", {}, "Models"), this.back),
      h("p", { class: "soft" }, "Every registered version, newest first. The champion is what `medstyle serve` serves."),
      this.said, this.list, this.more);
    this.two = new TwoModels();
    this.element.append(this.two.element);
  }

  enter() { this.load(); }

  async load() {
    try {
      const { choices, versions, registry } = await run("models");
      this.versions = versions;
      this.two.offer(choices);
      this.back.hidden = !this.of("previous") || !this.of("champion");
      const badges = row => h("span", {}, row.aliases.split(" ").filter(Boolean).map(one => h("span", { class: `badge ${one}` }, one)));
      const gate = row => h("span", { class: { passed: "fine", failed: "bad" }[row.gate] ?? "soft" }, row.gate);
      const actions = row => h("span", { class: "row" },
        h("button", { type: "button", onclick: () => this.show(row.version, `Version ${row.version}`) }, "Details"),
        !row.aliases.split(" ").includes("champion") && h("button", { type: "button", onclick: () => this.promote(row) }, "Promote"));
      const rows = versions.map(row => [row.version, badges(row), gate(row), row.psnr, row.ssim, row.mae, row.weights, actions(row)]);
      const folders = choices.filter(one => !versions.some(row => row.version === one.model) && one.label.startsWith("Folder"));
      this.list.replaceChildren(
        versions.length ? table(["Version", "Aliases", "Gate", "PSNR", "SSIM", "MAE", "Weights", ""], rows, "Versions")
          : h("p", {}, registry ? "The registry holds no version yet." : "No registry is here yet; `dvc repro` makes one."),
        h("ul", { class: "list" }, folders.map(one => h("li", { class: "row" }, one.label,
          h("button", { type: "button", onclick: () => this.show(one.model, one.label) }, "Details")))));
    } catch (error) {
      this.list.replaceChildren(problem(error.message));
    }
  }

  of(alias) { return this.versions.find(row => row.aliases.split(" ").includes(alias))?.version; }

  async show(name, title) {
    this.more.hidden = false;
    this.more.replaceChildren(h("h2", {}, title), h("p", { class: "soft" }, "Reading …"));
    try {
      const facts = await run("model", { name });
      const methods = Object.entries(facts.table ?? {}).sort(([a], [b]) => (b === "model") - (a === "model"));
      const measures = [...new Set(methods.flatMap(([, row]) => Object.keys(row)))];
      const rates = Object.entries(facts.rates ?? {}).filter(([name]) => name !== "lesions");
      const shown = name => name === "lesions kept" ? `${(100 * facts.rates[name]).toFixed(0)} % of ${facts.rates.lesions}` : facts.rates[name];
      const rows = methods.map(([method, row]) => Object.assign([method.replaceAll("_", " "), ...measures.map(one => row[one] ?? "–"),
        ...rates.map(([name]) => method === "model" ? shown(name) : "–")], { own: method === "model" }));
      const titles = { "lesions kept": "lesions kept", created: "created per subject" };
      this.more.replaceChildren(h("h2", {}, title),
        h("p", {}, `${facts.source.label} → ${facts.targets.map(one => one.label).join(", ")}`),
        facts.gate ? h("p", {}, "Gate: ", h("span", { class: { passed: "fine", failed: "bad" }[facts.gate] ?? "soft" }, facts.gate),
          facts.overruled && `; overruled: ${facts.overruled}`) : "",
        facts.reasons?.length ? h("ul", {}, facts.reasons.map(one => h("li", {}, one))) : "",
        rows.length ? h("h3", {}, "On unseen subjects, beside the baselines") : "",
        rows.length ? table(["Method", ...measures, ...rates.map(([name]) => titles[name])], rows, "Results") : h("p", { class: "soft" }, "It was not evaluated here."),
        rates.length ? h("p", { class: "soft" }, "A lesion is kept if half of its contrast is; a created structure is bright, larger than a ball of "
          + "2 mm radius, and absent from the truth. Errors at folds count as well: compare models, zero is not expected.") : "",
        this.trained = h("div", {}, h("p", { class: "soft" }, "Reading the training …")),
        facts.card ? h("details", {}, h("summary", {}, "Model card"), h("pre", { tabindex: "0" }, facts.card)) : "");
      this.more.scrollIntoView({ block: "nearest" });
      await this.training(name, this.trained);
    } catch (error) {
      this.more.replaceChildren(h("h2", {}, title), problem(error.message));
    }
  }

  async training(name, where) {
    const { curves, samples } = await run("training", { name });
    const groups = {};
    for (const [loss, points] of Object.entries(curves)) {
      const [group, ...rest] = loss.split("/");
      if (points.length > 1) (groups[group] ??= []).push({ name: rest.join("/").replaceAll("_", " "), points });
    }
    const charts = Object.entries(groups).map(([group, lines]) => chart(group, lines));
    const title = one => one.step === null ? "Unseen subject" : `Step ${one.step}`;
    where.replaceChildren(
      h("h3", {}, "Training, by step"), charts.length ? h("div", { class: "charts" }, charts) : h("p", { class: "soft" }, "No curves of its training are known here."),
      samples.length ? h("h3", {}, "Sample pictures") : "",
      h("div", { class: "samples" }, samples.map(one => h("figure", {},
        marked(one.picture, `${title(one)}: source, synthetic and real images`), h("figcaption", {}, title(one))))));
  }

  async promote(row) {
    const champion = this.of("champion");
    const lines = [`Version ${row.version} becomes the champion` + (champion ? `; version ${champion} becomes “previous”.` : "."),
      "`medstyle serve` follows within seconds; running requests complete."];
    const passed = row.gate === "passed";
    const why = await confirmed(`Promote version ${row.version}?`, passed ? lines : [...lines, `Its gate says: ${row.gate}. Promoting it needs a reason, which is recorded.`],
      "Promote", passed ? null : "Reason");
    if (why !== null) this.change("promote", { version: row.version, because: why });
  }

  async rollback() {
    const [champion, previous] = [this.of("champion"), this.of("previous")];
    const lines = [`Version ${previous} becomes the champion again; version ${champion} becomes “previous”.`,
      "`medstyle serve` follows within seconds; running requests complete."];
    if (await confirmed("Roll back?", lines, "Roll back") !== null) this.change("rollback", {});
  }

  async change(kind, given) {
    try {
      const { said } = await run(kind, given);
      this.said.replaceChildren(h("p", { class: "fine" }, said));
    } catch (error) {
      this.said.replaceChildren(problem(error.message));
    }
    await this.load();
  }
}

export const make = () => new Models();
