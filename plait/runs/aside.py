"""Work that goes on in a thread beside the main one's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Aside:
    """Begins `work` at once. The thread is a daemon: a run that is interrupted does not wait for it."""

    def __init__(self, work: Callable[[], Any]):
        self.found: list[Any] = []
        self.fault: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self.thread.start()

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.found.append(work())
        except BaseException as fault:  # noqa: BLE001 (it is raised again where the result is asked for)
            self.fault = fault

    def result(self) -> Any:
        """What the work gave, when it is done; what it raised is raised here."""
        while self.thread.is_alive():  # in turns, so that Ctrl-C is heard
            self.thread.join(0.2)
        if self.fault is not None:
            raise self.fault
        return self.found[0]
