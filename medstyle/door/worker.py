"""Empty the inbox in a process of its own, which the door starts anew when it ends."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from medstyle.catalogue.package import MANIFEST, checked
from medstyle.catalogue.store import installed_folder
from medstyle.errors import DataError, UserError, outline
from medstyle.inference.files import About
from medstyle.inference.inbox import Outcome, process
from medstyle.networks.folder import ready_folder
from medstyle.networks.translator import Translator

PAUSE_S, LOOK_S = 0.5, 30.0  # between looks at the inbox, and at the alias of the model


def facts_of(reference: str) -> tuple[Path, dict[str, str]]:
    """Return the folder of a model, and what its registry says of it."""
    if not reference.startswith("models:/"):
        folder, known = installed_folder(reference), {"name": Path(reference).name, "version": "not registered"}
        if folder is not None:
            manifest = checked((folder.parent / MANIFEST).read_bytes())
            return folder, {"name": manifest.name, "version": manifest.version, "gate": manifest.gate}
        return ready_folder(reference), {**known, "gate": "not asked"}
    from medstyle.registry.models import download, resolve, version_tags

    found = resolve(reference)
    gate = version_tags(found.version).get("gate", "not asked") if found.model == "medstyle" else "not asked"
    folder = download(f"models:/{found.model}/{found.version}") / "artifacts" / "translator"
    return folder, {"name": found.model, "version": found.version, "gate": gate}


def work(folder: Path, reference: str, uncertainty: bool, report: bool, ended: threading.Event) -> None:
    """Translate what comes, until the door has ended or another version has the model's alias."""
    place, facts = facts_of(reference)
    translator = Translator.load(place)
    about = About(**facts) if report else None
    _say("ready", version=facts["version"], weights=translator.sha256)
    looked = time.monotonic()
    while not ended.wait(PAUSE_S):
        if _waits(folder):
            try:
                with closing(process(folder, translator, uncertainty=uncertainty, about=about)) as outcomes:
                    for outcome in outcomes:
                        _tell(outcome)
                        if ended.is_set():
                            return
            except DataError as error:  # another process empties the same inbox
                _say("inbox", why=type(error).__name__)
        if reference.startswith("models:/") and time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            if facts_of_alias(reference) != facts["version"]:
                return


def facts_of_alias(reference: str) -> str:
    """Return the version that a reference means now."""
    from medstyle.registry.models import resolve

    return resolve(reference).version


def _waits(folder: Path) -> bool:
    return any((folder / "inbox").glob("[!.]*")) or any((folder / "inbox" / ".moved").glob("*"))


def _tell(outcome: Outcome) -> None:
    if outcome.status != "waiting":
        facts: dict[str, Any] = {"key": outcome.key, "status": outcome.status, "code": outcome.code}
        _say("study", **facts, series=outcome.series, warned=outcome.warned)


def _say(event: str, **facts: Any) -> None:
    with suppress(BrokenPipeError):  # the door has ended
        print(json.dumps({"event": event, **facts}), flush=True)


def _await_end(ended: threading.Event) -> None:
    """Wait until the door ends, however; the study in work is completed, as it is not at fault."""
    sys.stdin.read()
    ended.set()


def main() -> None:
    """Work on ``FOLDER MODEL UNCERTAINTY REPORT``."""
    folder, reference, uncertainty, report = sys.argv[1:]
    ended = threading.Event()
    threading.Thread(target=_await_end, args=(ended,), daemon=True).start()
    try:
        work(Path(folder), reference, uncertainty == "1", report == "1", ended)
    except UserError as error:
        print(f"medstyle: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        print(outline(error), end="", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
