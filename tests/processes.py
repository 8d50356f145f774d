"""Processes that have imported everything already, where the system can fork them: to import it again is most of what a
short run costs."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.context import BaseContext
from pathlib import Path

HEAVY = ["accelerate", "matplotlib.figure", "plait.cli.fit", "plait.runs.fit", "tests.train.toyjob", "torch._dynamo"]


def ready() -> BaseContext:
    """What starts them. Those of one worker come from one server, so all find the same there."""
    way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(way)
    if way == "forkserver":
        context.set_forkserver_preload(HEAVY)
    return context


def said(function, words: tuple, folder: str, log: str) -> None:
    """Call `function` in `folder`; all that it says, and what it falls over, goes to the file `log`."""
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    raise SystemExit(function(*words))


def both(module: str, folder: Path, *chosen: str, seconds: float = 300) -> dict:
    """What the first of two processes of `python -m MODULE RANK STORE ...` prints, as JSON; both must end well."""
    where = dict(cwd=Path(__file__).parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)
    logs = [(folder / f"rank{rank}.log").open("w+") for rank in range(2)]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(folder / "store"), *chosen],
            stdout=subprocess.PIPE,
            stderr=logs[rank],
            **where,
        )
        for rank in range(2)
    ]
    try:
        said, _ = pair[0].communicate(timeout=seconds)
        pair[1].wait(timeout=60)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    for process, log in zip(pair, logs):
        log.seek(0)
        assert process.returncode == 0, log.read()[-2000:]
    return json.loads(said)
