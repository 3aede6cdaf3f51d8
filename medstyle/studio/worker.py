"""Do the studio's jobs in a process of its own: a line of JSON for each job, lines in return."""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medstyle.errors import DataError, UserError, outline
from medstyle.studio.place import Place
from medstyle.studio.shelf import ASKED

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


UNKNOWN = "the page sent arguments that this studio does not know; reload the page"


def _load() -> None:
    """Import what takes seconds, while nobody waits for an answer."""
    import medstyle.studio.compare  # noqa: F401


def _function(kind: str) -> Callable[[Place, Mapping[str, Any]], dict[str, Any]]:
    """Return the function of a job; those that only ask do not wait for the libraries of images."""
    if kind in ASKED:

        def asked(place: Place, arguments: Mapping[str, Any]) -> dict[str, Any]:
            names = list(inspect.signature(ASKED[kind]).parameters)[1:]
            if not arguments.keys() <= set(names) or not all(isinstance(one, str) for one in arguments.values()):
                raise DataError(UNKNOWN)
            return ASKED[kind](place.model, **arguments)

        return asked
    from medstyle.studio.compare import difference
    from medstyle.studio.work import KINDS

    return {**KINDS, "difference": difference}[kind]


def main() -> None:
    """Answer jobs until the server ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # what libraries print must not come between the answers
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def say(answer: dict[str, Any]) -> None:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()

        threading.Thread(target=_load, daemon=True).start()
        for line in sys.stdin:
            job = json.loads(line)
            place = Place(Path(job["folder"]), Path(job["out"]), sys.argv[1], say)
            try:
                result = _function(job["kind"])(place, job["arguments"])
                say({"result": result, "files": place.files})
            except ValidationError:
                say({"error": UNKNOWN})
            except UserError as error:
                say({"error": place.cleaned(str(error))})
            except Exception as error:
                print(outline(error), end="", file=sys.stderr)
                say({"error": f"unexpected {type(error).__name__}; what the studio printed shows where"})


if __name__ == "__main__":
    main()
