// A place to drop files, folders and zips on; two buttons do the same for the keyboard.
import { h } from "./dom.js";

async function inside(entry, path = "") {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: path + entry.name }];
  }
  const reader = entry.createReader(), found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(one => inside(one, `${path}${entry.name}/`)))).flat();
}

export function dropzone({ title, hint, folders = true, id, taken }) {
  const input = h("input", { type: "file", multiple: true, hidden: true, id });
  const folder = h("input", { type: "file", webkitdirectory: true, hidden: true, "aria-label": "Folder" });
  for (const one of [input, folder]) {
    one.addEventListener("change", () => {
      const files = [...one.files].map(file => ({ file, name: file.webkitRelativePath || file.name }));
      one.value = "";
      if (files.length) taken(files);
    });
  }
  const place = h("div", { class: "drop" },
    h("strong", {}, title), h("small", {}, hint),
    h("div", { class: "row" },
      h("button", { type: "button", onclick: () => input.click() }, "Choose files"),
      folders && h("button", { type: "button", onclick: () => folder.click() }, "Choose a folder")),
    input, folder);
  place.addEventListener("dragover", event => { event.preventDefault(); place.classList.add("over"); });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", async event => {
    event.preventDefault();
    place.classList.remove("over");
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
    const files = (await Promise.all(entries.map(entry => inside(entry)))).flat();
    if (files.length) taken(files);
  });
  return place;
}
