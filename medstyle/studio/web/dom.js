// Build elements: h("p", { class: "soft" }, "text", child).
export function h(name, facts = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(facts)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter(one => one != null && one !== false).flatMap(worded));
  return made;
}

// Text between backticks is code.
function worded(one) {
  if (typeof one !== "string" || !one.includes("`")) return [one];
  return one.split("`").map((text, place) => {
    if (place % 2 === 0) return text;
    const code = document.createElement("code");
    code.textContent = text;
    return code;
  });
}

export const field = (title, input) => h("label", {}, h("span", {}, title), input);
export const check = (title, input) => h("label", { class: "check" }, input, h("span", {}, title));
export const problem = text => h("p", { class: "problem", role: "alert" }, text);
export const warning = text => h("p", { class: "warning" }, text);

export function table(head, rows, caption) {
  const cell = (name, one) => one instanceof Node ? h(name, {}, one)
    : h(name, { class: typeof one === "number" ? "number" : null }, typeof one === "number" ? format(one) : String(one));
  const numbers = head.map((_, place) => rows.length > 0 && rows.every(row => typeof row[place] === "number"));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("thead", {}, h("tr", {}, head.map((one, place) => h("th", { scope: "col", class: numbers[place] && "number" }, one)))),
      h("tbody", {}, rows.map(row => h("tr", { class: row.own && "own" }, row.map(one => cell("td", one)))))));
}

export const format = value => Number.isInteger(value) ? String(value) : value.toPrecision(4);

// Ask before something is changed; resolves to the reason (or ""), null if the person does not want it.
export function confirmed(title, lines, action, reason) {
  return new Promise(resolve => {
    const why = reason ? h("input", { type: "text", required: true }) : null;
    const done = value => { box.close(); box.remove(); resolve(value); };
    const box = h("dialog", { "aria-label": title },
      h("h2", {}, title), lines.map(line => h("p", {}, line)), why && field(reason, why),
      h("div", { class: "row" },
        h("button", { type: "button", onclick: () => done(null) }, "Cancel"),
        h("button", { type: "button", class: "main", onclick: () => {
          if (!why || why.reportValidity()) done(why ? why.value : "");
        } }, action)));
    box.addEventListener("cancel", () => done(null));
    document.body.append(box);
    box.showModal();
  });
}
