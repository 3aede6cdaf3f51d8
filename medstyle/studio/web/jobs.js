// The inbox's ledger, live.
import { run } from "./api.js";
import { h, problem, table } from "./dom.js";

const EVERY_MS = 5000;
const WORDS = { derived: "done", repeated: "done", quarantined: "quarantined", waiting: "waiting", running: "running" };

class Jobs {
  constructor() {
    this.title = "Jobs";
    this.said = h("div", { role: "status" });
    this.list = h("section", { class: "card" }, h("p", { class: "soft" }, "Reading the ledger …"));
    this.element = h("div", { class: "page" }, h("h1", {}, "Jobs"),
      h("p", { class: "soft" }, "Studies in the inbox of this project: what waits, what is done, what was put into quarantine and why."),
      this.said, this.list);
  }

  enter() {
    this.load();
    const timer = setInterval(() => this.load(), EVERY_MS);
    return () => clearInterval(timer);
  }

  async load() {
    try {
      const { folder, studies } = await run("ledger");
      const text = JSON.stringify(studies);
      if (text === this.before) return; // what a screen reader reads stays in place
      this.before = text;
      const state = one => h("span", { class: { quarantined: "bad", derived: "fine", waiting: "doubt" }[one.status] ?? "soft" }, WORDS[one.status] ?? one.status);
      const why = one => [one.code, one.reason].filter(Boolean).join(": ") || (one.status === "waiting" ? "not settled yet, or the next run takes it" : "");
      const act = one => one.status === "quarantined" ? h("button", { type: "button", onclick: () => this.retry(one.key) }, "Retry") : "";
      const rows = (studies ?? []).map(one => [one.key || "–", state(one), why(one), one.finished?.replace("T", " ").slice(0, 16) ?? "", one.place ?? "", act(one)]);
      this.list.replaceChildren(studies === null ? h("p", {}, `No inbox is here: ${folder}/inbox does not exist. “How to schedule” in the documentation sets one up.`)
        : rows.length ? table(["Study", "State", "Why", "Finished (UTC)", "Place", ""], rows, "Studies")
          : h("p", {}, `Nothing is in ${folder}/inbox, and nothing was yet.`));
    } catch (error) {
      this.list.replaceChildren(problem(error.message));
    }
  }

  async retry(key) {
    try {
      const { said } = await run("retry", { key });
      this.said.replaceChildren(h("p", { class: "fine" }, said));
    } catch (error) {
      this.said.replaceChildren(problem(error.message));
    }
    this.load();
  }
}

export const make = () => new Jobs();
