"""What a person sees while something runs: lines, and one progress bar where there is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from plait.core.printed import clean

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 15.0


class Console:
    """Lines and progress on `stream`. Without a terminal progress is a plain line now and then; `quiet` prints
    nothing."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False):
        self.stream = stream or sys.stderr
        self.quiet = quiet or self.stream is None  # nobody listens
        self.bar: Progress | None = None
        self.task: Any = None
        self.last = 0.0
        self.terminal = bool(getattr(self.stream, "isatty", lambda: False)())

    def say(self, label: str, text: str = "") -> None:
        """One line of the page: a label, and what there is to say."""
        if self.quiet:
            return
        line = clean(f"{label:<9} {text}").rstrip()
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.stream, flush=True)

    def start(self, label: str, total: int) -> None:
        """Begin the progress of one piece of work."""
        self.last = time.monotonic()
        self.label, self.total = label, total
        if self.quiet or not self.terminal:
            return
        from rich.console import Console as Rich
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn(f"{label:<9}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%  {task.description}"),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=Rich(file=self.stream), transient=True)
        self.bar.start()
        self.task = self.bar.add_task("", total=total)

    def step(self, done: int, text: str = "") -> None:
        """Progress to `done` of the total."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=clean(text))
        elif time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            self.say(self.label, f"{done:,} of {self.total:,}  {text}")

    def stop(self) -> None:
        """End the progress; what was said stays."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A `progress(done, total)` of work that begins anew with each other total."""
        begun = 0

        def step(done: int, total: int) -> None:
            nonlocal begun
            if total != begun:
                self.stop()
                self.start(label, total)
                begun = total
            self.step(done)

        try:
            yield step
        finally:
            self.stop()

    def update(self, info: dict) -> None:
        """The trainer's report of one step."""
        memory = f"  {info['memory_gb']:.1f} GB" if info.get("memory_gb") else ""
        loss = f"loss {info['loss']:.3f}  " if info.get("loss") is not None else ""
        left = (
            f"  {clock(info['seconds_left'])} left"
            if info.get("seconds_left") is not None and not self.terminal
            else ""
        )
        self.step(
            info["step"],
            f"epoch {info['epoch']}  {loss}lr {info['lr']:.1e}  {info['rows_per_s']:,.0f} rows/s{memory}{left}",
        )

    def epoch(self, info: dict) -> None:
        """The trainer's report of one epoch; the curves in the report show them all."""


def clock(seconds: float) -> str:
    """70 -> "1:10", 7000 -> "1:56:40"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
