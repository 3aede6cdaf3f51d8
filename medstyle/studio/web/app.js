// The frame: pages by the part of the address behind #, and the life of the session.
import { ask } from "./api.js";
import { confirmed, h } from "./dom.js";

const PAGES = {
  translate: () => import("./translate.js"),
  style: () => import("./style.js"),
  models: () => import("./models.js"),
  jobs: () => import("./jobs.js"),
  data: () => import("./data.js"),
};
const ALIVE_MS = 60_000, RETRY_MS = 1_500;
const DOWN = "The studio does not answer. Start it again with `medstyle studio`; this page reconnects by itself.";
const LOST = "The session has ended, or the studio was started again: what you dropped, and what was made of it, is deleted. "
  + "What is shown stays until you leave the page; to go on, drop it again.";
const main = document.getElementById("main"), notice = document.getElementById("notice");
const made = {}; // pages keep what they show while another is looked at
let leave = () => {}, turns = 0; // how often a page was chosen

export function say(text) {
  notice.className = "problem";
  notice.replaceChildren(h("span", {}, text));
  notice.hidden = !text;
}

// Keep the session. If the studio is away, ask until it is back, with or without what was dropped.
let timer, down = false, asking = false;
async function alive() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    const answer = await fetch("api/session", { method: "POST" });
    if (answer.status === 401) await renew();
    else if (down) say("");
    down = false;
  } catch {
    down = true;
    say(DOWN);
  }
  asking = false;
  timer = setTimeout(alive, down ? RETRY_MS : ALIVE_MS);
}

async function renew() {
  const page = await fetch("./"); // begins a session, unless the studio has another token by now
  if (!page.ok) return say(await page.text());
  dispatchEvent(new Event("renewed"));
  say(LOST);
}

async function go() {
  const name = location.hash.slice(1) in PAGES ? location.hash.slice(1) : "translate";
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const turn = turns += 1;
  let page;
  try {
    page = await PAGES[name]();
  } catch {
    return alive();
  }
  if (turn !== turns) return; // another page was chosen while this one was loading
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
for (const kind of ["unanswered", "unknown"]) addEventListener(kind, alive);
timer = setTimeout(alive, ALIVE_MS);
addEventListener("hashchange", () => { go(); main.focus(); });
// a file that misses the place for it must not replace the page
for (const kind of ["dragover", "drop"]) addEventListener(kind, event => event.preventDefault());
// the other pages too, while the studio is there
await go();
for (const load of Object.values(PAGES)) load().catch(() => {});
