// Compare two images: volumes by NiiVue, pictures and clips on canvases.
import { field, h } from "./dom.js";

const MARK = "RESEARCH ONLY";
const PLANES = { "Three planes": 3, Axial: 0, Coronal: 1, Sagittal: 2 };
const CROSSHAIR = 8, WINDOWING = 9, PAN = 3; // NiiVue's modes of dragging
const BOTTOM = 34; // its name for the middle of the lower edge
const STEPS = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
const OVERLAYS = [["uncertainty", "Uncertainty"], ["interval", "Interval"], ["difference", "Difference"]];
const MODES = { side: "Side by side", slider: "Slider", blend: "Blend", source: "Source", result: "Result" };

export function mark(context, width, height) {
  const size = Math.max(11, Math.round(Math.min(width, height) / 22));
  context.save();
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  const across = context.measureText(MARK).width + size;
  context.fillStyle = "rgb(0 0 0 / 55%)";
  context.fillRect((width - across) / 2, height - 1.7 * size, across, 1.5 * size);
  context.fillStyle = "#ffd977";
  context.fillText(MARK, width / 2, height - .6 * size);
  context.restore();
}

// Show a picture with the mark in its pixels
export function marked(url, title) {
  const canvas = h("canvas", { role: "img", "aria-label": `${title}. Research only.` }), image = new Image();
  image.addEventListener("load", () => {
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    mark(context, canvas.width, canvas.height);
  });
  image.src = url;
  return canvas;
}

class Pane {
  constructor(role) {
    this.canvas = h("canvas", { tabindex: "0" });
    this.title = h("span"), this.spot = h("output");
    this.pane = h("div", { class: "pane" });
    this.element = h("figure", { class: role }, h("figcaption", {}, this.title, this.spot), this.pane);
  }

  // NiiVue keeps its context with a canvas, so that each volume gets a new one
  fresh(kind) {
    this.nv?.cleanup();
    this.nv = null;
    this.video?.pause();
    this.video = null;
    this.canvas = h("canvas", { tabindex: "0", class: kind });
    this.pane.replaceChildren(this.canvas);
    this.spot.textContent = "";
  }

  async picture(url, title) {
    this.fresh("picture");
    const image = new Image();
    image.src = url;
    await image.decode();
    [this.canvas.width, this.canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = this.canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    mark(context, this.canvas.width, this.canvas.height);
    this.told(title, "img");
  }

  async clip(url, title) {
    this.fresh("picture");
    const video = this.video = h("video", { src: url, muted: true, loop: true, playsinline: true, preload: "auto" });
    video.muted = true;
    await new Promise((resolve, reject) => {
      video.addEventListener("loadeddata", resolve, { once: true });
      video.addEventListener("error", () => reject(new Error("This browser cannot play the clip; download it.")), { once: true });
    });
    [this.canvas.width, this.canvas.height] = [video.videoWidth, video.videoHeight];
    const context = this.canvas.getContext("2d");
    const draw = () => {
      if (this.video !== video) return;
      context.drawImage(video, 0, 0);
      mark(context, this.canvas.width, this.canvas.height);
      video.requestVideoFrameCallback(draw);
    };
    draw();
    this.told(title, "img");
  }

  async volume(library, url, title, [low, high], overlays = []) {
    this.fresh("volume");
    const nv = this.nv = new library.Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [.42, .77, .81, .8], crosshairWidth: .5, crosshairWidthUnit: "percent",
      fontColor: [.9, .9, .9, 1], isRadiologicalConvention: true,
      multiplanarShowRender: 0, dragMode: WINDOWING, dragModePrimary: CROSSHAIR,
      dragAndDropEnabled: false, logLevel: "error", show3Dcrosshair: false, multiplanarPadPixels: 2,
    });
    await nv.attachToCanvas(this.canvas, false);
    const volumes = [{ url, name: "image.nii.gz", colormap: "gray", cal_min: low, cal_max: high }];
    for (const one of overlays) {
      volumes.push({ url: one.url, name: `${one.kind}.nii.gz`, opacity: one.opacity, colormap: "warm",
        colormapNegative: one.kind === "difference" ? "winter" : "", cal_min: one.high / 10, cal_max: one.high });
    }
    await nv.loadVolumes(volumes);
    const style = { textColor: [1, .85, .47, 1], textScale: .8, textAlignment: "left", lineWidth: 0,
      lineColor: [0, 0, 0, 0], lineTerminator: "none", backgroundColor: [0, 0, 0, .55] };
    nv.addLabel(MARK, style, undefined, BOTTOM);
    nv.onLocationChange = spot => {
      const value = spot.values?.[0]?.value;
      this.spot.textContent = [...spot.mm].slice(0, 3).map(one => one.toFixed(0)).join(", ") + " mm"
        + (Number.isFinite(value) ? `: ${value.toPrecision(4)}` : "");
    };
    this.canvas.addEventListener("keydown", event => {
      const step = STEPS[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      nv.moveCrosshairInVox(...step);
    }, true);
    this.told(title, "application",
      "Arrow keys move the crosshair, Page Up and Page Down change the slice.");
  }

  told(title, role, more = "") {
    this.title.textContent = title;
    this.canvas.setAttribute("role", role);
    this.canvas.setAttribute("aria-label", `${title}. Research only. ${more}`.trim());
  }
}

export class Viewer {
  constructor(words) {
    this.source = new Pane("source");
    this.result = new Pane("result");
    this.stage = h("div", { class: "stage" }, this.source.element, this.result.element);
    this.mode = h("select", { onchange: () => this.arrange() });
    this.plane = h("select", { onchange: () => this.each(nv => nv.setSliceType(Number(this.plane.value))) },
      Object.entries(PLANES).map(([name, value]) => h("option", { value }, name)));
    this.drag = h("select", { onchange: () => this.dragging() },
      [["Crosshair", CROSSHAIR], ["Window", WINDOWING], ["Move and zoom", PAN]].map(([name, value]) => h("option", { value }, name)));
    this.dial = h("input", { type: "range", min: 0, max: 100, value: 50, oninput: () => this.arrange() });
    this.slide = h("label", { class: "slide" }, h("span", {}, "Before – after"), this.dial);
    this.hazes = OVERLAYS.map(([kind, name]) => {
      const dial = h("input", { type: "range", min: 0, max: 100, value: 0, oninput: () => this.overlay() });
      return { kind, dial, label: h("label", { class: "slide" }, h("span", {}, name), dial) };
    });
    this.play = h("button", { type: "button", onclick: () => this.playing() }, "Play");
    this.forVolumes = [field("Planes", this.plane), field("Drag", this.drag)];
    this.windows = h("div", { class: "windows" });
    this.bar = h("div", { class: "bar" }, field("View", this.mode), this.forVolumes, this.play, this.slide, this.hazes.map(one => one.label),
      h("button", { type: "button", onclick: () => this.save() }, "Save picture"));
    this.empty = h("div", { class: "empty" }, words);
    this.full = h("div", { class: "viewer", hidden: true }, this.bar, this.stage, this.windows);
    this.below = h("div", {}); // for what a page says about the image
    this.element = h("section", { "aria-label": "Viewer" }, this.empty, this.full, this.below);
  }

  each(act) {
    for (const pane of [this.source, this.result]) if (pane.nv) act(pane.nv);
  }

  clear() {
    delete this.element.dataset.shown;
    this.full.hidden = true;
    this.empty.hidden = false;
  }

  // `image` is what a job made of one image; `base` begins the addresses of its files
  async show(base, image, spot = null) {
    const both = image.synthetic != null;
    const [from, to] = image.titles ?? [image.from ? `Source: ${image.from}` : "Source",
      image.to ? `Synthetic: ${image.to}` : "Synthetic"];
    if (!spot) for (const one of this.hazes) one.dial.value = 0;
    [this.base, this.image] = [base, image];
    delete this.element.dataset.shown;
    this.empty.hidden = true;
    this.full.hidden = false;
    const modes = both ? Object.keys(MODES) : ["source"];
    const before = this.both && both ? this.mode.value : modes[0];
    this.both = both;
    this.mode.replaceChildren(...modes.map(one => h("option", { value: one },
      image.titles?.[["source", "result"].indexOf(one)] ?? MODES[one])));
    this.mode.value = before;
    for (const one of [...this.forVolumes, this.windows]) one.hidden = image.kind !== "volume";
    this.play.hidden = image.kind !== "video";
    for (const one of this.hazes) one.label.hidden = !this.shown().includes(one);
    this.arrange();
    const url = name => image[name].includes("/") ? image[name] : base + image[name];
    if (image.kind === "volume") {
      this.library ??= await import("./vendor/niivue.js");
      const overlays = this.shown().map(one => ({ kind: one.kind, opacity: one.dial.valueAsNumber / 100,
        url: url(one.kind), high: image[`${one.kind}_window`][1] }));
      await this.source.volume(this.library, url("source"), from, image.source_window);
      if (both) await this.result.volume(this.library, url("synthetic"), to, image.synthetic_window, overlays);
      this.joined(both);
      if (spot) this.each(nv => { nv.scene.crosshairPos = spot; nv.drawScene(); });
    } else {
      const how = image.kind === "video" ? "clip" : "picture";
      await this.source[how](url("source"), from);
      if (both) await this.result[how](url("synthetic"), to);
    }
    this.arrange();
    this.element.dataset.shown = both ? "both" : "source";
  }

  // Lay something more over the result; the crosshair stays where it is
  async add(kind, facts, opacity) {
    this.hazes.find(one => one.kind === kind).dial.value = opacity;
    await this.show(this.base, { ...this.image, ...facts }, this.source.nv.scene.crosshairPos);
  }

  joined(both) {
    if (both) {
      this.source.nv.broadcastTo([this.result.nv], { "2d": true, "3d": true });
      this.result.nv.broadcastTo([this.source.nv], { "2d": true, "3d": true });
    }
    this.plane.dispatchEvent(new Event("change"));
    this.dragging();
    this.windows.replaceChildren(...[[this.source, "source"], ...(both ? [[this.result, "synthetic"]] : [])]
      .map(([pane, name]) => this.windowed(pane, this.image[`${name}_window`])));
    // NiiVue draws its text only when its font has arrived
    setTimeout(() => this.each(nv => nv.drawScene()), 300);
  }

  windowed(pane, [low, high]) {
    const nv = pane.nv, volume = nv.volumes[0];
    const [least, most] = [Math.min(volume.global_min, low), Math.max(volume.global_max, high)];
    const made = value => h("input", { type: "range", min: least, max: most, step: (most - least) / 500, value,
      oninput: () => {
        volume.cal_min = Math.min(bottom.valueAsNumber, top.valueAsNumber - (most - least) / 500);
        volume.cal_max = top.valueAsNumber;
        nv.updateGLVolume();
      } });
    const bottom = made(low), top = made(high);
    nv.onIntensityChange = () => { bottom.value = volume.cal_min; top.value = volume.cal_max; };
    const name = this.image.titles?.[pane === this.source ? 0 : 1] ?? (pane === this.source ? "the source" : "the synthetic image");
    return h("fieldset", {}, h("legend", {}, `Window of ${name}`),
      field("from", bottom), field("to", top));
  }

  dragging() {
    const mode = Number(this.drag.value);
    this.each(nv => { nv.opts.dragModePrimary = mode; });
  }

  // the overlays that the image has, in the order of NiiVue's volumes
  shown() { return this.hazes.filter(one => this.image?.synthetic && this.image[one.kind]); }

  overlay() {
    this.shown().forEach((one, place) => this.result.nv?.setOpacity(place + 1, one.dial.valueAsNumber / 100));
  }

  playing() {
    const videos = [this.source.video, this.result.video].filter(Boolean);
    const start = videos[0]?.paused;
    for (const video of videos) {
      video.currentTime = videos[0].currentTime;
      if (start) video.play(); else video.pause();
    }
    this.play.textContent = start ? "Pause" : "Play";
  }

  arrange() {
    const mode = this.mode.value, share = this.dial.valueAsNumber;
    const stacked = mode === "slider" || mode === "blend";
    this.stage.className = `stage ${stacked ? "stacked" : mode === "side" ? "" : "one"}`;
    this.source.element.hidden = mode === "result";
    this.result.element.hidden = mode === "source";
    this.slide.hidden = !stacked;
    this.slide.firstChild.textContent = mode === "blend" || this.image?.titles ? this.image?.titles ? "Left – right" : "Source – synthetic" : "Before – after";
    const top = this.result.element.style;
    top.clipPath = mode === "slider" ? `inset(0 0 0 ${share}%)` : "";
    top.opacity = mode === "blend" ? share / 100 : "";
    requestAnimationFrame(() => {
      for (const pane of [this.source, this.result]) if (!pane.element.hidden && pane.pane.clientWidth) pane.nv?.resizeListener();
    });
  }

  async save() {
    this.each(nv => nv.drawScene());
    const panes = [this.source, this.result].filter(pane => !pane.element.hidden);
    const stacked = this.stage.classList.contains("stacked");
    const sizes = panes.map(pane => [pane.canvas.width, pane.canvas.height]);
    const height = Math.max(...sizes.map(one => one[1]));
    const width = stacked ? sizes[0][0] : sizes.reduce((sum, one) => sum + one[0], 0);
    const canvas = h("canvas", { width, height }), context = canvas.getContext("2d");
    const share = this.dial.valueAsNumber / 100;
    let left = 0;
    panes.forEach((pane, place) => {
      context.save();
      if (stacked && place && this.mode.value === "slider") {
        context.beginPath();
        context.rect(share * width, 0, width, height);
        context.clip();
      } else if (stacked && place) context.globalAlpha = share;
      pane.nv?.drawScene(); // its canvas is empty after the frame
      context.drawImage(pane.canvas, stacked ? 0 : left, 0, ...(stacked ? [width, height] : sizes[place]));
      context.restore();
      left += sizes[place][0];
    });
    mark(context, width, height);
    const link = h("a", { href: canvas.toDataURL("image/png"), download: "view.png" });
    link.click();
  }
}
