"""Measure latency, throughput and memory of the served model, `predict` and the bare network.

Default network, random weights, default preparation, a drawn head as DICOM: what changes between
the rows of a table is what lies around the same computation. Each cell is asked for some seconds;
all in one run, so compare within it.
Usage: python benchmarks/serving.py [--seconds 6] [--slices 128] [--threads 1]
       python benchmarks/serving.py --soak 10000
       (many requests, 10 % of them bad: wrong answers, memory)
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import torch
import urllib3

from medstyle.cohort.rules import Rule
from medstyle.dicom.acquired import write_series
from medstyle.imaging.modality import Fingerprint
from medstyle.imaging.volume import Volume
from medstyle.inference.translate import prepare_source, translate_volume
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.translator import Translator, TranslatorConfig
from medstyle.transforms.descriptors import FeatureStatistics, Reference
from medstyle.transforms.prepare import Preparation

DOMAINS = ["mr_t1", "mr_t2"]
CORES = len(os.sched_getaffinity(0))
WARM = "256² slice"  # what every way is asked once before it is timed
INSIDE = "voxels to voxels: preparation, network, verdict"  # what is not transport or coding
BAD = 10  # every tenth request of a soak


def main() -> None:
    """Print the tables in Markdown; the exit code of a soak is 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each cell, at least one request")
    parser.add_argument("--slices", type=int, default=128, help="of the volume")
    parser.add_argument("--threads", type=int, default=1, help="of each process that computes")
    parser.add_argument("--soak", type=int, metavar="REQUESTS")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["OMP_NUM_THREADS"] = f"{arguments.threads}"  # for the servers
    print(f"torch {torch.__version__}, {platform.machine()}, {CORES} cores, {arguments.threads} threads a process\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.soak:
            sys.exit(soak(folder, arguments.soak))
        table(folder, arguments.seconds, arguments.slices)


def table(folder: Path, seconds: float, slices: int) -> None:
    """Measure every way to ask for the three images."""
    translator = register(folder, Architecture())
    images = {
        WARM: study(folder / "a", 1, 256),
        "512² slice": study(folder / "b", 1, 512),
        f"{slices} x 256²": study(folder / "c", slices, 256),
    }
    print("| image | asked through | p50 ms | p95 ms | requests/s | transport and coding |\n|---|---|---|---|---|---|")
    inside: dict[str, Callable[[], object]] = {}
    for title, path in images.items():
        ways = in_process(translator, path)
        inside[title] = ways.pop(INSIDE)
        for name, call in ways.items():
            if title == WARM:
                call()
            within, times = timed([inside[title], call], seconds)
            row(title, name, times, 1 / np.mean(times), within if name == "predict in process" else None)
        row(title, INSIDE, within, 1 / np.mean(within))
    memory = {}
    for workers, (name, command) in itertools.product((1, 2), SERVERS.items()):
        server_name = f"{name}, {workers} worker{'s' * (workers > 1)}"
        with serving(folder, command, workers) as server:
            for title, path in itertools.islice(images.items(), 2 if workers > 1 else None):
                ask = partial(server.ask, body(encoded(path)))
                if title == WARM:
                    ask()
                within, times = timed([inside[title], ask], seconds)
                row(title, f"{server_name}, 1 client", times, 1 / np.mean(times), within)
                if len(times) > 2:
                    times, rate = crowd(ask, 2 * workers, seconds)
                    row(title, f"{server_name}, {2 * workers} clients", times, rate)
            memory[server_name] = server.memory()
    print("\n| server | processes | resident MiB after the requests |\n|---|---|---|")
    for name, sizes in memory.items():
        print(f"| {name} | {len(sizes)} | {sum(sizes):.0f} = {' + '.join(f'{size:.0f}' for size in sizes)} |")


def row(image: str, name: str, times: Sequence[float], rate: float, within: Sequence[float] = ()) -> None:
    p50, p95 = (1e3 * np.percentile(times, q) for q in (50, 95))
    share = f"{1 - 1e3 * np.median(within) / p50:.0%}" if within else ""
    print(f"| {image} | {name} | {p50:.0f} | {p95:.0f} | {rate:.2f} | {share} |", flush=True)


def register(folder: Path, architecture: Architecture) -> Translator:
    """Register a translator of random weights as champion in a separate registry, which is used
    from here on."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.chdir(folder)
    from medstyle.registry import models

    torch.manual_seed(0)
    networks = Networks(architecture, DOMAINS).eval().requires_grad_(False)
    anything = FeatureStatistics((0.0,) * 21, (1.0,) * 21, 100.0)
    config = TranslatorConfig(
        architecture,
        DOMAINS,
        *DOMAINS,
        Preparation(),
        {name: Fingerprint((0.0, 800.0)) for name in DOMAINS},
        rules=(Rule("mr_t1", {"Modality": "MR"}),),
        reference={"mr_t1": Reference(anything, anything)},
    )
    Translator(config, [networks]).save(folder / "translator")
    (folder / "translator/MODEL_CARD.md").write_text("random weights")
    models.add_version(folder / "translator", {"reference": "truth", "tables": {"truth": {}}}, [])
    models.promote("1", "a benchmark")
    return Translator.load(folder / "translator")


def study(folder: Path, slices: int, size: int) -> Path:
    """Write a synthetic head with noise as a DICOM series; return its folder."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, size, size)), indexing="ij", sparse=True)
    head = 300 * ((x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 1.5) ** 2 < 1) + 150 * (x**2 + y**2 + z**2 / 2 < 0.2)
    head = head + np.abs(np.random.default_rng(0).normal(0, 8, head.shape))
    volume = Volume(head.astype(np.float32), np.diag([240 / size, 240 / size, 1.2, 1.0]), "mr_t1")
    attributes = {"StudyInstanceUID": "2.25.1", "SeriesInstanceUID": f"2.25.{size}", "SeriesDescription": "T1"}
    write_series(folder, volume, {**attributes, "FrameOfReferenceUID": "2.25.2"}, range(slices))
    return folder


def encoded(folder: Path) -> bytes:
    """Return the only file, or a zip of several."""
    files = sorted(folder.iterdir())
    if len(files) == 1:
        return files[0].read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in files:
            archive.write(file, file.name)
    return buffer.getvalue()


def body(image: bytes) -> bytes:
    table = {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}
    return json.dumps({"dataframe_split": table}).encode()


def in_process(translator: Translator, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the same work from the inside out: the network, voxels to voxels, files to files,
    bytes to bytes."""
    from medstyle.cohort.inventory import inventory
    from medstyle.registry.pyfunc import ServedTranslator

    [item] = inventory([folder]).volumes
    volume = item.load("mr_t1")
    content = prepare_source(volume, translator).slices
    [networks], [code] = translator.members, translator.style()
    served = ServedTranslator()
    served.load_context(SimpleNamespace(artifacts={"translator": "translator"}))
    frame = pd.DataFrame({"image": [encoded(folder)]})

    @torch.inference_mode()
    def bare() -> None:
        for x in content:
            networks.generator(x[None], code)

    return {
        "the bare network": bare,
        INSIDE: lambda: translate_volume(volume, translator),
        "predict in process": lambda: served.predict(None, frame),
    }


def timed(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Call each in turns for some seconds, at least once; return their durations."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while not times[-1] or time.perf_counter() < end:
        for call, of in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            of.append(time.perf_counter() - start)
    return times


def crowd(call: Callable[[], object], clients: int, seconds: float) -> tuple[list[float], float]:
    """Call from several threads at once; return durations and calls per second."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = list(itertools.chain(*pool.map(lambda _: timed([call], seconds)[0], range(clients))))
    return times, len(times) / (time.perf_counter() - start)


SERVERS = {
    "mlflow": "mlflow models serve -m models:/medstyle@champion --env-manager local -h 127.0.0.1 -p {port} "
    "-w {workers}",
    "medstyle": "medstyle.cli serve --port {port} --workers {workers}",
}


class Server:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url
        self.http = urllib3.PoolManager(maxsize=16)

    def ask(self, content: bytes) -> bytes:
        answer = self.post(content)
        assert answer.status == 200, answer.data
        return answer.data

    def post(self, content: bytes) -> urllib3.BaseHTTPResponse:
        headers = {"Content-Type": "application/json"}
        return self.http.request("POST", f"{self.url}/invocations", body=content, headers=headers)

    def memory(self) -> list[float]:
        """Return the resident MiB of its processes, the largest first."""
        parent = psutil.Process(self.process.pid)
        sizes = [one.memory_info().rss / 2**20 for one in (parent, *parent.children(recursive=True))]
        return sorted((size for size in sizes if size > 1), reverse=True)


@contextmanager
def serving(folder: Path, command: str, workers: int) -> Iterator[Server]:
    """Run a server on the registry in ``folder``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    package = str(Path(__file__).parents[1])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": package}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.format(port=port, workers=workers).split()],
            cwd=folder, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    server = Server(process, f"http://127.0.0.1:{port}")
    try:
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                if server.http.request("GET", f"{server.url}/ping", retries=False).status == 200:
                    break
            except urllib3.exceptions.HTTPError:
                time.sleep(0.2)
        yield server
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in (*children, process):
            one.terminate()
        psutil.wait_procs([*children, psutil.Process(process.pid)], 20)
        process.wait()


def soak(folder: Path, requests: int) -> int:
    """Query `medstyle serve` many times, with every tenth request bad.

    Return 1 if an answer was wrong.
    """
    register(folder, Architecture(widths=(4, 6), bottleneck_blocks=1))
    rng = np.random.default_rng(0)
    arrays = []
    for _ in range(16):
        y, x = np.mgrid[-1:1:64j, -1:1:64j]
        file = io.BytesIO()
        np.save(file, np.float32(300 * (x**2 + y**2 < rng.uniform(0.3, 0.8)) + rng.uniform(0, 20, x.shape)))
        arrays.append(file.getvalue())
    file = encoded(study(folder / "a", 1, 64))
    bad = [body(b"junk" * 100), body(file[:3000]), body(b"PK\x03\x04junk"), b"junk", body(arrays[0][:900])]
    sizes: list[float] = []
    with serving(folder, SERVERS["medstyle"], 2) as server:
        good = [body(image) for image in (*arrays, file)]
        expected = [answer(server.ask(content)) for content in good]

        def one(number: int) -> bool:
            if number % (requests // 20) == 0:
                sizes.append(sum(server.memory()))
            if number % BAD == 0:
                return server.post(bad[number // BAD % len(bad)]).status == 400
            which = number % len(good)
            return answer(server.ask(good[which])) == expected[which]

        start = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            right = list(pool.map(one, range(requests)))
        seconds = time.perf_counter() - start
    wrong = right.count(False)
    print(f"{requests} requests of 4 clients, every {BAD}th bad, {requests / seconds:.1f} per second: {wrong} wrong")
    print(f"resident MiB of all processes on the way: {' '.join(f'{size:.0f}' for size in sizes)}")
    return int(wrong > 0)


def answer(content: bytes) -> str:
    """Return the end of the image, only voxels: the header of a DICOM file contains the time."""
    [made] = json.loads(content)["predictions"]
    return str(made["image"])[-4000:]


if __name__ == "__main__":
    main()
