"""The page works in a real browser, without a network."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from medstyle.evaluation.report import strip

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# moves everything a person can move and writes what the canvases then show into the page
ACT = """
<script>
const faults = [];
document.addEventListener("securitypolicyviolation", event => faults.push(event.violatedDirective));
window.addEventListener("error", event => faults.push(String(event.message)));
const wait = ms => new Promise(done => setTimeout(done, ms));
const shown = () => Object.fromEntries([...document.querySelectorAll("#viewer canvas")].map(canvas => {
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum = (sum * 31 + data[i]) % 1000003;
  return [canvas.dataset.layer, sum];
}));
const set = (id, value, kind) => {
  const input = document.getElementById(id);
  input.value = value;
  input.dispatchEvent(new Event(kind || "input", {bubbles: true}));
};
(async () => {
  for (let i = 0; i < 100 && !document.querySelector("#viewer canvas"); i++) await wait(50);
  await wait(300);
  const seen = {first: shown()};
  set("slice", 1); seen.slice = shown();
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowUp", bubbles: true})); seen.key = shown();
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true})); seen.back = shown();
  set("window", 40); seen.window = shown();
  set("level", 20); seen.level = shown();
  seen.number = document.getElementById("number").value;
  seen.requests = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  seen.faults = faults;
  tell(seen);
})();
</script>
"""


TELL = """
<script>
const tell = seen => {
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
};
</script>
"""

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


def browse(page, script, folder):
    """Open a page with a script in it, in a browser.

    Returns what the script tells with ``tell(seen)``.
    """
    (folder / "page.html").write_text(page.replace("</head>", f"{TELL}{script}</head>", 1))
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
        (folder / "page.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(found.group(1))


@needs_browser
def test_the_viewer_turns_slices_and_asks_no_network(run, tmp_path):
    seen = browse((run.root / "reports/report.html").read_text(), ACT, tmp_path)
    assert seen["faults"] == []
    assert seen["requests"] == []
    assert list(seen["first"]) == ["source", "synthetic", "real", "error", "agreement", "uncertainty"]
    for name in seen["first"]:
        assert seen["slice"][name] != seen["first"][name], name
        assert seen["key"][name] != seen["slice"][name], name
    assert seen["back"] == seen["slice"]
    for name in ("source", "synthetic", "real"):
        assert len({seen[step][name] for step in ("back", "window", "level")}) == 3, name
    for name in ("error", "uncertainty"):  # measured quantities have one scale
        assert seen["level"][name] == seen["back"][name], name
    assert seen["number"].startswith("2 of ")


def test_a_strip_holds_the_slices_in_order():
    import base64
    import io

    from PIL import Image

    images = np.linspace(0, 1, 5)[:, None, None] * np.ones((5, 40, 30))
    made = strip(images, most_px=20)
    assert (made["height"], made["width"], made["count"]) == (20, 15, 5)
    with Image.open(io.BytesIO(base64.b64decode(made["data"].partition(",")[2]))) as picture:
        grey = np.asarray(picture.convert("L"), float).reshape(5, 20, 15) / 255
    np.testing.assert_allclose(grey.mean(axis=(1, 2)), np.linspace(0, 1, 5), atol=0.02)
    assert strip(images)["height"] == 40
