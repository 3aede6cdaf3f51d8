"""Train in a separate process: a program, or a fork of a server with the slow imports done."""

import json
import multiprocessing
import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from medstyle.data.store import SliceStore
from tests.training.conftest import train

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def work(folder, kind, name, settings, say=lambda line: print(line, flush=True), environment=None):
    """Train on ``folder/store`` and write ``folder/NAME.safetensors``; tell of every step."""
    os.environ.update(environment or {})
    members, _ = train(
        SliceStore.open(folder / "store"),
        folder / name,
        kind,
        **settings,
        show=lambda step, values: say(f"step {step} {values.get('resumed', '')}"),
    )
    if os.environ.get("RANK", "0") == "0":
        save_file(members[0].state_dict(), folder / f"{name}.safetensors")


def fork(folder, kind, name, environment=None, **settings):
    """Start a process, in ``environment`` beside ours.

    Returns it and the connection on which its lines arrive.
    """
    ours, theirs = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=work, args=(folder, kind, name, settings, theirs.send, environment))
    process.start()
    theirs.close()
    return process, ours


if __name__ == "__main__":
    work(Path(sys.argv[1]), *sys.argv[2:4], json.loads(sys.argv[4]))
    # not ru_maxrss, which on Linux begins with the peak of the process that started this one
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
