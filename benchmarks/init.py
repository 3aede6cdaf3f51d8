"""Compare what `init` proposes with the hand-made recipe, at the same time of training.

Both are ingested, prepared, trained on one thread for the same seconds of processor time, and
measured on the same unseen subjects. The proposal may choose size, spacing, alignment,
normalisation and network.

    python benchmarks/init.py brains --minutes 4
    python benchmarks/init.py paintings --minutes 4
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from medstyle.params import parse
from medstyle.project.propose import Wishes, propose
from medstyle.project.survey import survey
from medstyle.project.write import render
from medstyle.stages import denoise, evaluate, ingest, train

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SETS: dict[str, tuple[Path, str, list[str], tuple[str, ...]]] = {  # data, recipe, tested, measures
    "brains": (
        DATA / "brain_t1_flair", "paired_mr", [f"sub-{k}" for k in ("04", "11", "18", "21", "23")],
        ("psnr", "ssim", "mae", "edges"),
    ),
    "paintings": (DATA / "photo_painting", "paintings", [], ("style_distance", "texture_distance", "structure")),
}  # fmt: skip
TIMED = 20  # steps that are measured to learn how many fit into the time


def run(sections: dict[str, Any], folder: Path, minutes: float, log: Any) -> dict[str, Any]:
    """Run the stages with ``sections`` below ``folder``; return metrics and facts of the run."""
    scans, slices, model, out = (folder / name for name in ("scans", "slices", "translator", "reports"))
    ingest.run(parse(ingest.Params, sections["ingest"], "ingest"), scans, folder / "ingest.json", log)
    denoise.run(parse(denoise.Params, sections["denoise"], "denoise"), scans, slices, log)
    settings = sections["train"]
    settings["training"] |= {"threads": 1, "device": "cpu", "seed": 0}
    taken = []
    for number, steps in enumerate((1, 1, 1 + TIMED)):  # the first reads libraries and files
        settings["training"]["steps"] = steps
        start = time.process_time()
        out_ = folder / f"probe{number}"
        train.run(parse(train.Params, settings, "train"), slices, out_, folder / "probe.csv", states=folder / "probes")
        taken.append(time.process_time() - start)
    seconds = (taken[2] - taken[1]) / TIMED
    settings["training"]["steps"] = max(50, round(60 * minutes / seconds))
    out.mkdir()
    train.run(parse(train.Params, settings, "train"), slices, model, out / "training.csv", states=folder / "states")
    evaluate.run(
        parse(evaluate.Params, sections["evaluate"], "evaluate"), scans, slices, model, folder / "none", out, log
    )
    return json.loads((out / "metrics.json").read_text()) | {
        "steps": settings["training"]["steps"], "seconds": seconds, "size": sections["denoise"]["size"],
    }  # fmt: skip


def main() -> None:
    """Run both, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=SETS)
    parser.add_argument("--minutes", type=float, default=4.0)
    arguments = parser.parse_args()
    source, recipe, held, measures = SETS[arguments.data]
    found = survey(source)
    proposed = yaml.safe_load(render(propose(found, Wishes(minutes=arguments.minutes)), Path()))
    by_hand = yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text())
    by_hand["ingest"] |= {"source": str(source)}
    results = {}
    for name, sections in (("recipe", by_hand), ("init", proposed)):
        sections["ingest"].pop("labels", None)
        sections["evaluate"] |= {"segmenter": 0, "uncertainty": 0, "intervals": 0, "figures": 0}
        if held:
            sections["denoise"] |= {"test_subjects": held, "validation": 0.1}
        rules = proposed["ingest"]["rules"]  # the same images, without the label maps
        if name == "recipe":  # which knows one target only
            rules = [{**rule, "domain": rule["domain"].partition("@")[0]} for rule in rules]
        sections["ingest"]["rules"] = rules
        with TemporaryDirectory() as scratch:
            results[name] = run(sections, Path(scratch), arguments.minutes, lambda line: print(line, file=sys.stderr))
    print(f"| {arguments.data}, {arguments.minutes:g} min of one thread | size | steps | ms | {' | '.join(measures)} |")
    print(f"|---|---|---|---|{'---|' * len(measures)}")
    for name, found_ in results.items():
        table = found_["tables"][found_["reference"]]
        model = {key: value["mean"] for key, value in table["model"].items()}
        cells = " | ".join(f"{model[m]:.4g}" if m in model else "-" for m in measures)
        size = " x ".join(map(str, found_["size"]))
        print(f"| {name} | {size} | {found_['steps']} | {1000 * found_['seconds']:.0f} | {cells} |")


if __name__ == "__main__":
    main()
