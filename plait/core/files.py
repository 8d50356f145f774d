"""Files that appear whole or not at all, and what to say where the disk refuses them."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from plait.errors import DataError

FULL = (errno.ENOSPC, errno.EDQUOT, 112)  # the last is what Windows says


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `path`, then put that in its place. Raises DataError where the disk
    refuses."""
    path = Path(path)
    part = path.with_name(f".plait-{os.getpid()}-{threading.get_ident()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with ordinary(part):
                write(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {refusal(error)}") from error
    return path


@contextmanager
def ordinary(path: Path) -> Iterator[None]:
    """Around the writing of a new file: who may read it is up to the umask, also where a library makes its files for
    their owner alone."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def refuse_unwritable(folder: str | Path) -> None:
    """Raises DataError where nothing could be written into `folder`, which need not be there: said before work, not
    after."""
    folder = Path(folder).absolute()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    part = there / f".plait-{os.getpid()}-{threading.get_ident()}.new"
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        part.touch()
        part.unlink()
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {there}: {refusal(error)}") from error


def sweep(folder: str | Path) -> None:
    """Remove what a killed process was writing into `folder`."""
    for path in Path(folder).iterdir():
        if is_scrap(path):
            path.unlink(missing_ok=True)


def is_scrap(path: Path) -> bool:
    """Whether this is what a killed process was writing."""
    return path.match(".plait-*.new")


def refusal(error: Exception) -> str:
    """Why the disk refused: in a few words, without the path."""
    found = re.search(r"(?:os error|errno) (\d+)", str(error), re.IGNORECASE)  # safetensors and Arrow say it in words
    number = int(found[1]) if found else getattr(error, "errno", None)
    if number in FULL:
        return "the disk is full"
    return os.strerror(number) if number else str(error)
