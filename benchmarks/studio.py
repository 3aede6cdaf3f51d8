"""Measure the first view of `medstyle studio`, the size of its page, its preview, and its memory.

The browser is Chromium without a window. The first view is timed from the request to the heading
and the choice of files, each time in a browser without a cache.
Usage: python benchmarks/studio.py [--views 9] [--uploads 200]
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import psutil
import requests
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3 import Retry

SWIFT = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # WebGL without a GPU


def main() -> None:
    """Print the figures in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=9)
    parser.add_argument("--uploads", type=int, default=200, help="of 4 MiB, each in a session of its own")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "medstyle.cli", "studio", "--port", "0", "--model", "anybrain"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            url = server.stdout.readline().strip()
            run("models", Visitor(url))  # the worker has loaded its libraries
            rows = [*views(url, given.views), *previews(url), *memory(url, server.pid, given.uploads)]
        finally:
            server.terminate()
            server.wait()
    print("| what | value |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


def views(url: str, count: int) -> list[tuple[str, str]]:
    """Time the first view, and add up what the browser fetches, with the viewer."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    seconds, size, packed = [], 0, 0
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=SWIFT)
        for _ in range(count):
            page = browser.new_context().new_page()
            answers: list[Any] = []
            page.on("response", lambda answer, kept=answers: kept.append(answer))  # a method of C is no handler
            start = time.monotonic()
            page.goto(url)
            page.get_by_role("heading", name="Translate", level=1).wait_for()
            page.get_by_role("button", name="Choose files").first.wait_for()
            seconds.append(time.monotonic() - start)
            page.evaluate("import('./web/vendor/niivue.js').then(() => 1)")
            page.wait_for_timeout(500)
            files = [one for one in answers if "/web/" in one.url or one.url == url]
            size = sum(len(one.body()) for one in files)
            packed = sum(one.request.sizes()["responseBodySize"] for one in files)
            page.context.close()
        browser.close()
    median, worst = statistics.median(seconds), max(seconds)
    return [
        ("first view, s, median and slowest", f"{median:.2f}, {worst:.2f}"),
        ("page with its viewer, MB, unpacked and as sent", f"{size / 1e6:.2f}, {packed / 1e6:.2f}"),
    ]


class Visitor:
    """Asks as the page does."""

    def __init__(self, url: str) -> None:
        self.url, self.session = url, requests.Session()
        self.session.headers["Origin"] = url.rstrip("/")
        self.session.mount(url, HTTPAdapter(max_retries=Retry(connect=20, backoff_factor=0.2)))  # it has just started
        self.session.get(url, timeout=60).raise_for_status()

    def upload(self, name: str, content: bytes) -> str:
        """Send a file; return its set."""
        made = str(self.session.post(f"{self.url}api/sets", timeout=60).json()["set"])
        headers = {"X-Name": name}
        answer = self.session.put(f"{self.url}api/sets/{made}", data=content, headers=headers, timeout=60)
        answer.raise_for_status()
        return made


def run(kind: str, visitor: Visitor, **arguments: Any) -> None:
    """Do a job and wait for its end; raise if it fails."""
    name = visitor.session.post(f"{visitor.url}api/jobs/{kind}", json=arguments, timeout=60).json()["name"]
    events = visitor.session.get(f"{visitor.url}api/jobs/{name}/events", timeout=600).text
    if '"state": "done"' not in events:
        raise RuntimeError(events.rpartition("data: ")[2])


def previews(url: str) -> list[tuple[str, str]]:
    """Time a preview of 256 pixels of a picture of 2048 x 1536 by a classical method."""
    visitor, rng = Visitor(url), np.random.default_rng(0)
    sets = []
    for size in ((2048, 1536), (800, 600)):
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3)).astype(np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
        sets.append(visitor.upload("a.png", file.getvalue()))
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        run("style", visitor, set=sets[0], exemplars=sets[1], method="histogram_matching", preview=True)
        seconds.append(time.monotonic() - start)
    return [("preview of a picture, s, median", f"{statistics.median(seconds):.2f}")]


def memory(url: str, pid: int, uploads: int) -> list[tuple[str, str]]:
    """Compare what the server holds after a fifth of the uploads and after all."""
    held = []
    for part in (uploads // 5, uploads - uploads // 5):
        for _ in range(part):
            visitor = Visitor(url)
            run("inspect", visitor, set=visitor.upload("a.nii", bytes(4 << 20)))
            visitor.session.delete(f"{url}api/session", timeout=60)
        held.append(psutil.Process(pid).memory_info().rss / 2**20)
    return [(f"server, MiB, after {uploads // 5} and {uploads} uploads", f"{held[0]:.0f}, {held[1]:.0f}")]


if __name__ == "__main__":
    main()
