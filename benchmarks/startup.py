"""Measure how long commands take before their work begins, against importing torch and MONAI.

`translate` is timed from start to end on a volume of four slices; `register` and the flow until
they first ask the server that they are told of. The times alternate with the reference's, and the
medians are printed. Usage: python benchmarks/startup.py [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ("-c", "import torch, monai")
COMMAND = ("-m", "medstyle.cli")


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_inputs(place)
        names = ("scan.nii.gz", "out.nii.gz", "--model", "anybrain", "--from", "mr_t1", "--to", "mr_t2")
        jobs = {
            "`medstyle --help`": lambda: whole(place, *COMMAND, "--help"),
            "`medstyle translate`, four slices, to the end": lambda: translated(place, *COMMAND, "translate", *names),
            "`medstyle register`, until it asks MLflow": lambda: asked(
                place, "MLFLOW_TRACKING_URI", *COMMAND, "register"
            ),
            "`python -m flows.train`, until it asks Prefect": lambda: asked(
                place, "PREFECT_API_URL", "-m", "flows.train"
            ),
        }
        times: dict[str, list[float]] = {name: [] for name in ("reference", *jobs)}
        for _ in range(runs):
            times["reference"].append(whole(place, *REFERENCE))
            for name, job in jobs.items():
                times[name].append(job())
    reference = statistics.median(times.pop("reference"))
    print(f"| command | seconds | of `import torch, monai` ({reference:.2f} s) |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(values) / reference:.2f} |")


def write_inputs(place: Path) -> None:
    """Write what the commands read: a scan, a trained model, and reports."""
    import numpy as np
    import SimpleITK as sitk

    values = np.random.default_rng(0).integers(50, 400, (4, 64, 64)).astype("int16")
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((2.0, 2.0, 4.0))
    sitk.WriteImage(image, str(place / "scan.nii.gz"))
    shutil.copytree(ROOT / "medstyle" / "ready" / "anybrain", place / "models" / "translator")
    (place / "reports").mkdir()
    for name, text in (("report.html", ""), ("metrics.json", json.dumps({})), ("subjects.csv", "")):
        (place / "reports" / name).write_text(text)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, place)


def whole(place: Path, *arguments: str) -> float:
    """Return how many seconds a process takes, which must succeed."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=place, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def translated(place: Path, *arguments: str) -> float:
    """Return the seconds of a translation, whose output is removed again."""
    taken = whole(place, *arguments)
    for file in place.glob("out*"):
        file.unlink()
    return taken


def asked(place: Path, variable: str, *arguments: str) -> float:
    """Return after how many seconds a process connects to the server that ``variable`` names."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=place,
            env=environment() | {variable: address},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            server.accept()[0].close()
            return time.perf_counter() - begin
        finally:
            process.kill()
            process.wait()


def environment() -> dict[str, str]:
    """Return the variables of a process that finds this repository's code, on one thread."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
