"""The manifest of a run folder: size and checksum of each of its files, checked when they are read.

A file is put on it when it is written, and never again while it stays: what lies on the disk is held to what was
written, not to what is there. CRC-32 finds every fault of up to 32 bits in a row, and misses one in 4 billion of
others; it is as fast as a disk. Checkpoints have seals of their own (`plait.train.checkpoint`). A run of an older plait
has no manifest, and is read without.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from plait.core.files import is_scrap, write_whole
from plait.errors import DataError, PlaitError, UsageError
from plait.train import checkpoint

MANIFEST, CONFIG, LOCK = "manifest.json", "config.json", ".lock"
CACHE = "features"  # made again where it is damaged
SEEDS = "seeds"  # checkpoints of all seeds but the first, a folder each
PIECE = 1 << 22


class Found(NamedTuple):
    """A file of a run and how it is: "right", "changed", "missing", or "unknown" (not on the manifest)."""

    file: str
    state: str
    why: str = ""


def read_checked(path: Path) -> bytes:
    """A file of a run. Raises DataError where it cannot be read, or is not as the manifest has it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    _refuse(path, _known(path), (len(data), zlib.crc32(data)))
    return data


def check(path: Path) -> None:
    """As `read_checked`, of a file that something else reads."""
    if (known := _known(path)) is not None:
        try:
            _refuse(path, known, _sum(path))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


@contextmanager
def checking(paths: Iterable[Path]) -> Iterator[None]:
    """`check` them while something else reads them. A file's fault is raised in place of what came of it."""
    with ThreadPoolExecutor(1) as pool:
        found = [pool.submit(check, path) for path in paths]
        try:
            yield
        except Exception as error:
            for one in found:
                if fault := one.exception():
                    raise fault from error
            raise
        for one in found:
            one.result()


@contextmanager
def rewriting(path: Path) -> Iterator[None]:
    """Around the writing of a file, whose line on the manifest (if there is one) is then anew; a kill in between leaves
    none."""
    home, name = path.parent, path.name
    if not (home / MANIFEST).is_file():
        yield
        return
    forget(home, name)
    yield
    _write(home, _read(home) | {name: _line(path)})


def forget(folder: Path, *names: str) -> None:
    """Take files that are about to change off the manifest."""
    if (folder / MANIFEST).is_file():
        known = _read(folder)
        if known.keys() & set(names):
            _write(folder, {name: line for name, line in known.items() if name not in names})


def seal(folder: Path) -> None:
    """Put all files on the manifest that are not there yet, and take those off that are gone."""
    known = _read(folder) if (folder / MANIFEST).is_file() else {}
    there = _files(folder)
    _write(folder, {name: known.get(name) or _line(path) for name, path in there.items()})


def verify(folder: str | Path) -> list[Found]:
    """Every file of the run in `folder`, of runs that lie in it, and of its checkpoints, and whether each is as it was
    written.

    Raises UsageError where there is no run, DataError where the manifest itself is damaged or there is none.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file() and not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} is no run folder: it has no {CONFIG}")
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} has no {MANIFEST}: an older plait wrote it, and nothing says how its files were")
    known, there = _read(folder), _files(folder)
    found = []
    for name in sorted(known.keys() | there.keys()):
        if name not in known:
            found.append(Found(name, "unknown", "not on the manifest"))
        elif name not in there:
            found.append(Found(name, "missing"))
        else:
            why = _differs(known[name], _sum(there[name]))
            found.append(Found(name, "changed" if why else "right", why))
    for name, fault in checkpoint.examine(folder).items():
        found.append(Found(name, "missing" if fault == "missing" else "changed" if fault else "right", fault))
    for place in sorted(folder.glob(f"{SEEDS}/*")):  # checkpoints of all seeds but the first
        for name, fault in checkpoint.examine(place).items():
            told = f"{place.relative_to(folder).as_posix()}/{name}"
            found.append(Found(told, "missing" if fault == "missing" else "changed" if fault else "right", fault))
    for inner in sorted(p.parent for p in folder.glob(f"*/{CONFIG}")):
        if (inner / MANIFEST).is_file():
            found += [one._replace(file=f"{inner.name}/{one.file}") for one in verify(inner)]
    return found


def verified(path: Path) -> bool:
    """Whether a file of a run is on the manifest, so that `read_checked` says that it is as it was written."""
    return _known(path) is not None


def _files(folder: Path) -> dict[str, Path]:
    """{name from the folder: path} of all that belongs to the run itself."""
    out, rooms = {}, [folder]
    while rooms:
        for path in sorted(rooms.pop().iterdir()):
            name = path.relative_to(folder).as_posix()
            if path.is_dir():
                if name not in (checkpoint.HOME, CACHE, SEEDS) and not (path / CONFIG).is_file():
                    rooms.append(path)
            elif name not in (MANIFEST, LOCK) and not is_scrap(path):
                out[name] = path
    return out


def _sum(path: Path) -> tuple[int, int]:
    size = checksum = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return size, checksum


def _line(path: Path) -> dict[str, int]:
    return dict(zip(("bytes", "crc32"), _sum(path)))


def _known(path: Path) -> dict[str, int] | None:
    """The line of a file, which may lie in a folder of the run, or in one of that."""
    home = next((p for p in path.parents[:3] if (p / MANIFEST).is_file() and (p / CONFIG).is_file()), None)
    return None if home is None else _read(home).get(path.relative_to(home).as_posix())


def _differs(known: dict[str, int], found: tuple[int, int]) -> str:
    if found[0] != known["bytes"]:
        return f"it has {found[0]:,} bytes and had {known['bytes']:,}"
    return "" if found[1] == known["crc32"] else "its checksum is another"


def _refuse(path: Path, known: dict[str, int] | None, found: tuple[int, int]) -> None:
    if known is not None and (why := _differs(known, found)):
        raise DataError(
            f"{path} is damaged, it is not as it was written: {why}. Bring it back from a copy (plait verify looks at "
            f"every file of a run); where the change is your own, delete {MANIFEST}, and the run is read unchecked"
        )


def _read(folder: Path) -> dict[str, dict[str, int]]:
    path = folder / MANIFEST
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        files = {str(n): {k: int(line[k]) for k in ("bytes", "crc32")} for n, line in told["files"].items()}
        if told["crc32"] != _own(files):
            raise PlaitError("its own checksum is another")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}): bring it back from a copy; without it the run is "
            "read unchecked"
        ) from error
    return files


def _write(folder: Path, files: dict[str, dict[str, int]]) -> None:
    files = {name: files[name] for name in sorted(files)}
    told: dict[str, Any] = {"crc32": _own(files), "files": files}
    write_whole(folder / MANIFEST, lambda part: part.write_text(json.dumps(told, indent=1), encoding="utf-8"))


def _own(files: dict) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
