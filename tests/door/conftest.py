"""One archive for all tests of the door, and a model of random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medstyle.door.ledger import Ledger
from medstyle.door.scp import Receiver
from medstyle.door.settings import Params
from medstyle.door.store import Store
from medstyle.door.watch import Watch
from tests.conftest import Once
from tests.door.archive import NEEDED, Archive, free_port, running
from tests.inference.conftest import make_translator


@pytest.fixture(scope="session")
def model(once: Once) -> Path:
    return once("door-model", lambda folder: make_translator().save(folder / "model")) / "model"


@pytest.fixture(scope="session")
def shared_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Archive, int]]:
    """Start the one archive; with it comes the port at which it looks for a door."""
    if NEEDED:
        pytest.skip(f"absent: {', '.join(NEEDED)}; install the Debian packages orthanc, orthanc-dicomweb, dcmtk")
    port = free_port()
    with running(Archive(tmp_path_factory.mktemp("orthanc"), port)) as archive:
        yield archive, port


@pytest.fixture
def archive(shared_archive: tuple[Archive, int]) -> Archive:
    """Return the archive, empty."""
    shared_archive[0].clear()
    return shared_archive[0]


@pytest.fixture
def port(shared_archive: tuple[Archive, int]) -> int:
    return shared_archive[1]


class Scp:
    """A receiver of its own in this process."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.ledger = Ledger(folder)
        params = Params(**{"callers": ("SENDER",), "port": 0, "silence_s": 5.0, "free_mb": 0, **settings})
        self.store = Store(folder, self.ledger, params.study_instances, params.free_mb << 20)
        self.watch = Watch(folder / "audit.jsonl")
        self.promises: list[Any] = []
        receiver = Receiver(params, self.store, self.watch, lambda *told: self.promises.append(told) or True)
        self.server = receiver.start()
        self.port = self.server.server_address[1]

    def count(self, name: str, result: str) -> float:
        return self.watch.registry.get_sample_value(f"medstyle_door_{name}_total", {"result": result}) or 0.0

    def audited(self) -> list[str]:
        return [json.loads(line)["event"]["what"] for line in (self.folder / "audit.jsonl").read_text().splitlines()]

    @property
    def files(self) -> list[Path]:
        return sorted(self.store.arriving.glob("[!.]*/*.dcm"))

    def close(self) -> None:
        self.server.shutdown()
        self.ledger.close()


@pytest.fixture
def scp(tmp_path: Path) -> Iterator[Any]:
    """Return a function that starts a receiver with other settings."""
    made: list[Scp] = []

    def start(**settings: Any) -> Scp:
        folder = tmp_path / f"station-{len(made)}"
        folder.mkdir()
        made.append(Scp(folder, **settings))
        return made[-1]

    yield start
    for one in made:
        one.close()
