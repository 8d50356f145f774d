"""Work that goes on in a thread beside the main one's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def aside(work: Callable[[], Any]) -> Future:
    """Begin `work` at once. The thread is a daemon, as those of an executor are not: a run that is interrupted does not
    wait for it."""
    found: Future = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as fault:  # it is raised again where the result is asked for
            found.set_exception(fault)

    threading.Thread(target=run, daemon=True).start()
    return found
