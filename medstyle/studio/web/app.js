// The frame: pages by the part of the address behind #, and the life of the session.
import { ask } from "./api.js";
import { confirmed } from "./dom.js";

const PAGES = {
  translate: () => import("./translate.js"),
  style: () => import("./style.js"),
  models: () => import("./models.js"),
  jobs: () => import("./jobs.js"),
  data: () => import("./data.js"),
};
const ALIVE_MS = 60_000;
const main = document.getElementById("main"), notice = document.getElementById("notice");
const made = {}; // pages keep what they show while another is looked at
let leave = () => {};

export function say(text) {
  notice.className = "problem";
  notice.textContent = text;
  notice.hidden = !text;
}

async function go() {
  const name = location.hash.slice(1) in PAGES ? location.hash.slice(1) : "translate";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const page = await PAGES[name]();
  leave();
  made[name] ??= page.make();
  main.replaceChildren(made[name].element);
  document.title = `${made[name].title} – medstyle studio`;
  leave = made[name].enter?.() ?? (() => {});
}

document.getElementById("end").addEventListener("click", async () => {
  const lines = ["Everything that you dropped here, and what was made of it, is deleted, also in other tabs."];
  if (await confirmed("End the session?", lines, "End and delete") === null) return;
  await ask("DELETE", "api/session");
  location.reload();
});

// the token has become a cookie; it need not stay in the address
if (location.search) history.replaceState(null, "", location.pathname + location.hash);
setInterval(() => ask("POST", "api/session").catch(error => say(error.message)), ALIVE_MS);
addEventListener("hashchange", () => { go(); main.focus(); });
// a file that misses the place for it must not replace the page
for (const kind of ["dragover", "drop"]) addEventListener(kind, event => event.preventDefault());
go();
