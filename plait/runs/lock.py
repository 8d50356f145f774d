"""One process at a time writes a run folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from plait.core.files import refusal
from plait.errors import DataError, UsageError
from plait.runs.manifest import LOCK

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(folder: Path, doing: str = "written") -> Iterator[None]:
    """Hold the lock of a run folder, which is made where it is not there.

    Raises UsageError where another process (or thread) holds it, DataError where nothing can be written there. doing:
    what the folder cannot be meanwhile.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"{folder} cannot be {doing}: another process is at work in it. Wait until it has ended, or give another "
            "folder"
        ) from error
    except NotImplementedError:
        _unlocked(folder)
        yield
        return
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise DataError(f"cannot write {folder}: {refusal(error)}") from error
        _unlocked(folder)
        yield
        return
    try:
        yield
    finally:
        lock.release()


@contextmanager
def still(folder: Path, doing: str) -> Iterator[None]:
    """As `locked`, for who only reads a run: where nothing can be written, nobody else writes either."""
    if not os.access(folder, os.W_OK):
        yield
        return
    with locked(folder, doing):
        yield


def _unlocked(folder: Path) -> None:
    warnings.warn(f"{folder} lies where files cannot be locked: see that no two processes write it", stacklevel=4)
