"""Which folder a new run may have: one that is free, or that an earlier one was killed in before it was a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from plait.core.files import is_scrap
from plait.errors import UsageError
from plait.runs.folder import CONFIG, SCHEMA
from plait.runs.lock import locked
from plait.runs.manifest import CACHE, LOCK
from plait.runs.stored import SPLITS
from plait.runs.towers import HOME


def free_folders(source: Any) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2 and so on, but those that are taken. What a run left that was killed as its towers read
    is not: the next one goes on with it."""
    stem = Path(source).stem if isinstance(source, (str, Path)) else "table"
    stem = re.sub(r"[^\w.-]+", "_", stem) or "run"
    for i in range(1, 10_000):
        folder = Path("runs") / (stem if i == 1 else f"{stem}-{i}")
        if not folder.exists() or _inside(folder) and _inside(folder) <= {CACHE, LOCK}:
            yield folder
    raise UsageError("runs/ is full of runs: give --out")


def claim(out: str | Path | None, source: Any, stack: ExitStack) -> Path:
    """The folder of a new run, locked; what another process made of it in the meantime is not touched."""
    for folder in [Path(out)] if out else free_folders(source):
        try:
            stack.enter_context(locked(folder))
        except UsageError:
            if out:
                raise
            continue  # the name was free a moment ago
        break
    refuse_taken(folder)
    return folder


def refuse_taken(folder: Path) -> None:
    if (folder / CONFIG).exists():
        raise UsageError(f"{folder} already exists: give another --out, or --resume {folder} to go on with it")
    begun = {HOME, SPLITS, SCHEMA, CACHE, LOCK}  # what a run that was killed before it was one leaves
    if folder.exists() and (not folder.is_dir() or _inside(folder) - begun):
        raise UsageError(f"{folder} already exists and is no run folder: give another --out")


def _inside(folder: Path) -> set[str]:
    """What lies in a folder, scraps aside."""
    return {p.name for p in folder.iterdir() if not is_scrap(p)} if folder.is_dir() else {folder.name}
