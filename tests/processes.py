"""Processes that have imported everything already, where the system can fork them: to import it again is most of what a
short run costs."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import BaseContext

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
