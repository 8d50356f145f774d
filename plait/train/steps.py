"""What surrounds the steps of training: seeds, signals, and lines of JSON."""

from __future__ import annotations

import json
import math
import signal
import threading
from pathlib import Path
from typing import Any

import torch

from plait.core.files import refusal
from plait.errors import DataError


def step_seed(*parts: int) -> int:
    """A 64-bit seed from several numbers, by the finalizer of splitmix64: neighbours get unrelated ones."""
    mask, x = (1 << 64) - 1, 0
    for part in parts:
        x = ((x ^ part) + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
        x ^= x >> 31
    return x


def seed_everything(seed: int, device: torch.device) -> None:
    """The global random state of the CPU and of `device`. torch.manual_seed would, at 0.1 ms a step, also ask after all
    other devices."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


class Interrupt:
    """While it is entered, the first SIGINT or SIGTERM only sets `asked`; the second raises KeyboardInterrupt."""

    asked = False

    def __enter__(self) -> Interrupt:
        here = threading.current_thread() is threading.main_thread()  # elsewhere, signals are not ours to take
        self.before = {s: signal.signal(s, self._on) for s in (signal.SIGINT, signal.SIGTERM)} if here else {}
        return self

    def _on(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def plain(value: Any) -> Any:
    """What JSON can hold: numbers of any library become Python's, and those that are not finite become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def append(path: Path, row: dict) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line(row))
    except OSError as error:
        raise DataError(f"cannot write {path}: {refusal(error)}") from error


def since_gain(rows: list[dict], least: float, alone: float = 0.0) -> int:
    """Epochs behind the last one that was better than those before it, by more than `least` in its score or by more
    than `alone` in what the job notes as that: of what is trained, without what answers beside it."""
    since, best = 0, {"score": -math.inf, "alone": -math.inf}
    for row in rows:
        found = {name: row[name] for name in best if row.get(name) is not None}
        gained = [name for name in found if found[name] > best[name] + (least if name == "score" else alone)]
        since = 0 if gained else since + 1
        best |= {name: found[name] for name in gained}
    return since
