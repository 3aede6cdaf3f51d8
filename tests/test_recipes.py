"""Every shipped params file trains; ordinary pictures go through all stages."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medstyle import Translator, params, read_picture, translate_path
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.video import MEASURES
from medstyle.imaging.modality import DOMAINS
from medstyle.inference.files import Request
from medstyle.stages import acquire, denoise, evaluate, ingest, register, train
from tests.conftest import ROOT
from tests.data.conftest import make_store
from tests.evaluation.test_report import browse, needs_browser
from tests.inference.test_temporal import pan

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_trains(name, tmp_path, monkeypatch):
    """The file as it is, with a smaller network and a few steps, on small drawn slices of its
    domains."""
    sections = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    for stage in (acquire, ingest, denoise, evaluate, register):
        section = stage.__name__.rpartition(".")[2]
        params.parse(stage.Params, sections[section], section)
    settings = sections["train"]
    settings["training"] |= {"steps": 6, "batch": 2, "depth": 8, "threads": 1, "device": "cpu", "log_every": 1}
    settings["objective"] |= {"discriminator_width": 4, "discriminator_layers": 1}
    settings["network"] |= {"widths": [4, 6, 8]}
    settings["start"] = None  # its weights are of a larger network
    chosen = params.parse(train.Params, settings, "train")
    domains = [chosen.source, chosen.target, *chosen.contrasts, *chosen.variants, *chosen.domains]
    known = [rule["domain"] for rule in sections["ingest"]["rules"]]
    known += [twin["domain"] for twin in sections["ingest"].get("degraded", [])]
    assert set(known) == set(domains)
    make_store(tmp_path / "slices", domains=domains)
    monkeypatch.chdir(tmp_path)
    train.run(chosen, tmp_path / "slices", Path("translator"), Path("curve.csv"))
    translator = Translator.load("translator")
    assert len(translator.members) == 1 + chosen.training.snapshots
    if chosen.objective.kind in ("unpaired_cycle", "multi_domain", "harmonization"):
        assert set(domains) <= set(translator.config.reference), "every domain may come as an input"
    network = chosen.network
    channels = DOMAINS[chosen.source].channels * (1 + len(chosen.contrasts)) * network.neighbours
    x = torch.rand(1, channels, *(8, 20, 17)[-network.dimensions :])
    asks = network.style == ("reference",)
    style = translator.style(reference=torch.rand(1, channels, 20, 17)) if asks else None
    assert torch.isfinite(translator(x, style=style)).all()


def draw(root):
    """Draw 'photographs' (smooth, blue), 'paintings' (strokes, orange) and a clip of a photograph
    that moves."""
    rng = np.random.default_rng(0)
    for domain, tint in (("photo", (0.5, 0.7, 1.0)), ("painting", (1.0, 0.7, 0.3))):
        folder = root / "data/pictures" / domain
        folder.mkdir(parents=True)
        for i in range(12):
            coarse = rng.random((6, 8, 1)) * np.array(tint) * 255
            big = Image.fromarray(coarse.astype(np.uint8)).resize((56, 42), Image.Resampling.BICUBIC)
            pixels = np.asarray(big, np.float32)
            if domain == "painting":
                pixels = pixels + 40 * np.sign(rng.normal(size=(42, 56, 1)))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=95)
    (root / "data/pictures/truth").mkdir()
    with av.open(str(root / "data/pictures/truth/pan.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for pixels in pan(0, 20):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())


def go(root, name):
    """Run the stages of a recipe on the drawn pictures, smaller and shorter."""
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    recipe["denoise"] |= {"size": [40, 40], "validation": 0.1, "test": 0.2}
    recipe["train"]["training"] |= {"steps": 30, "threads": 1, "device": "cpu", "validate_every": 10}
    recipe["train"]["objective"] |= {"discriminator_width": 8, "discriminator_layers": 2}
    recipe["train"]["network"] |= {"widths": [8, 8, 16], "bottleneck_blocks": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        load = lambda module, name: params.load(module.Params, name, "params.yaml")  # noqa: E731
        model, reports, truth = Path("models/translator"), Path("reports"), Path("data/pictures/truth")
        ingest.run(load(ingest, "ingest"), Path("data/scans"), reports / "ingest.json")
        denoise.run(load(denoise, "denoise"), Path("data/scans"), Path("data/slices"))
        train.run(load(train, "train"), Path("data/slices"), model, reports / "training.csv")
        evaluate.run(load(evaluate, "evaluate"), Path("data/scans"), Path("data/slices"), model, truth, reports)
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    draw(root)
    return go(root, "video")


def test_pictures_are_measured_beside_their_baselines(project):
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert metrics["subjects"] == 2
    [table] = metrics["tables"].values()
    assert set(table) == {"model", *BASELINES}
    assert table["identity"]["structure"]["mean"] == pytest.approx(1.0)
    assert table["histogram_matching"]["colour_distance"]["mean"] < table["identity"]["colour_distance"]["mean"]
    assert table["identity"]["style_distance"]["mean"] > 0
    floor = metrics["style_of_all"].pop("training targets")
    assert floor < min(metrics["style_of_all"].values())
    assert metrics["distances"] == {}, "two pictures are no set"
    page = (project / "reports/report.html").read_text()
    assert page.count("data:image/webp") == 4, "before and after of two pictures"
    assert (project / "reports/figures/contact-sheet.png").is_file()


def test_a_clip_is_measured_beside_its_frames_by_themselves_and_can_be_played(project):
    [table] = json.loads((project / "reports/metrics.json").read_text())["videos"].values()
    assert list(table) == ["identity", "histogram_matching", "model, frame by frame", "model"]
    for row in table.values():
        assert set(row) == set(MEASURES)
    assert table["model"]["warping_short"] < 0.7 * table["model, frame by frame"]["warping_short"]
    assert (project / "reports/report.html").read_text().count("data:video/mp4") == 2


PLAY = """
<script>
addEventListener("load", async () => {
  const faults = [], seen = {};
  document.addEventListener("securitypolicyviolation", event => faults.push(event.violatedDirective));
  const shown = () => getComputedStyle(document.querySelector(".beside .after")).clipPath;
  const slider = document.querySelector(".beside input");
  seen.half = shown();
  slider.value = 20;
  slider.dispatchEvent(new Event("input", {bubbles: true}));
  seen.more = shown();
  seen.lengths = [];
  for (const video of document.querySelectorAll("video")) {
    for (let i = 0; i < 100 && !(video.duration > 0); i++) await new Promise(done => setTimeout(done, 50));
    seen.lengths.push(video.duration);
  }
  seen.faults = faults;
  tell(seen);
});
</script>
"""


@needs_browser
def test_before_and_after_slide_and_clips_play_in_a_browser(project, tmp_path):
    seen = browse((project / "reports/report.html").read_text(), PLAY, tmp_path)
    assert ("50%" in seen["half"], "20%" in seen["more"]) == (True, True)
    assert seen["lengths"] == pytest.approx([20 / 25] * 2, abs=0.05)
    assert seen["faults"] == []


def test_exemplars_are_measured_one_by_one_and_differ(tmp_path):
    draw(tmp_path)
    go(tmp_path, "exemplar")
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text())
    assert list(metrics["tables"]) == ["one target each"]
    scores = metrics["tables"]["one target each"]
    print(scores)
    assert metrics["safety"]["diversity"]["mean"] > 0
    translator, styles = Translator.load(tmp_path / "models/translator"), tmp_path / "data/pictures/painting"
    photo = tmp_path / "data/pictures/photo/0.jpg"
    made = {}
    for name, weights in (("first", (1, 0)), ("second", (0, 1)), ("both", (1, 1)), ("most", (3, 1))):
        mixture = [(w, styles / f"{i}.jpg") for i, w in enumerate(weights)]
        out = tmp_path / f"{name}.png"
        translate_path(photo, out, translator, Request(reference=mixture, force=True))
        made[name] = read_picture(out).astype(float)
    apart = np.abs(made["first"] - made["second"]).mean()
    assert apart > 0
    for name in ("both", "most"):
        assert max(np.abs(made[name] - made[other]).mean() for other in ("first", "second")) < 1.2 * apart


def test_twins_that_were_made_worse_are_paired_and_measured(tmp_path):
    draw(tmp_path)
    go(tmp_path, "enhance")
    metrics = json.loads((tmp_path / "reports/metrics.json").read_text())
    [table] = metrics["tables"].values()
    assert table["identity"]["psnr"]["mean"] < 25
    assert table["model"]["psnr"]["mean"] > table["identity"]["psnr"]["mean"] + 1, "thirty steps bring the light back"


def test_a_picture_and_a_folder_of_pictures_are_translated(project, tmp_path):
    translator = Translator.load(project / "models/translator")
    photo = project / "data/pictures/photo/0.jpg"
    [row] = translate_path(photo, tmp_path / "out.png", translator, Request(force=True))
    made = read_picture(tmp_path / "out.png")
    assert made.shape == (42, 56, 3)
    assert row["domain"] == "painting"
    with Image.open(tmp_path / "out.png") as image:
        assert "SYNTHETIC" in image.text["Comment"]
    rows = translate_path(photo.parent.parent, tmp_path / "all", translator, Request(force=True))
    assert len(rows) == 12, "the paintings in the folder are left alone"
    assert (tmp_path / "all/photo/3.jpg").is_file()
