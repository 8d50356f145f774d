"""Checkpoints that survive a kill at any moment: safetensors and JSON in a folder that appears whole or not at all.

`folder/checkpoints/` holds the last two, numbered. A new one is written beside them under another name, flushed to the
disk, and renamed as the last act, so a folder with a number for a name is complete; `files.json` in it has the size and
checksum of each file, and its own. The one before is kept until the next but one: there is something to go back to when
a file of the last is damaged later.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save_file
from torch import Tensor

from plait.core.files import ordinary, refusal
from plait.errors import DataError, PlaitError

HOME = "checkpoints"
SEAL = "files.json"
KEPT = 2


@dataclass
class Checkpoint:
    """What was saved: `tensors` by file ("model", "optimizer"...) and name, `state` plain numbers, and where it was
    read."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict
    folder: Path


def save(folder: str | Path, tensors: dict[str, dict[str, Tensor]], state: dict) -> Path:
    """Write a checkpoint of `folder`: each entry of `tensors` becomes a safetensors file, `state` becomes JSON.

    Returns its folder. Raises DataError where the disk is full or refuses; the checkpoints before it are then whole.
    """
    home = Path(folder) / HOME
    before = _numbers(home)
    number = before[-1] + 1 if before else 1
    new, final = home / f"{number:06d}.new", home / f"{number:06d}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home, before[-KEPT:])  # what an earlier kill left half written or half removed
        new.mkdir()
        for name, content in tensors.items():
            with ordinary(path := new / f"{name}.safetensors"):
                save_file(_alone(content), path)
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
        seal = {p.name: _flush(p) for p in sorted(new.iterdir())}
        (new / SEAL).write_text(json.dumps(dict(files=seal, crc32=_checksum(seal))), encoding="utf-8")
        _flush(new / SEAL)
        _flush_folder(new)
        os.replace(new, final)
        _flush_folder(home)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise DataError(_refused(home, error, before)) from error
    _sweep(home, [*before, number][-KEPT:])
    return final


def load(folder: str | Path) -> Checkpoint | None:
    """The newest whole checkpoint of `folder`, or None where none was ever completed.

    A damaged one is passed over with a warning that names the file. Raises ValueError where all are damaged.
    """
    home = Path(folder) / HOME
    faults: list[str] = []
    for number in reversed(_numbers(home)):
        try:
            found = _read(home / f"{number:06d}")
        except ValueError as error:
            faults.append(str(error))
            continue
        if faults:
            warnings.warn(f"{'; '.join(faults)}. Going on from the checkpoint before it, {found.folder}.", stacklevel=2)
        return found
    if faults:
        raise PlaitError(f"no checkpoint of {folder} can be read: {'; '.join(faults)}. Start again without resuming.")
    return None


def exists(folder: str | Path) -> bool:
    """Whether `folder` has a checkpoint, whole or damaged."""
    return bool(_numbers(Path(folder) / HOME))


def examine(folder: str | Path) -> dict[str, str]:
    """{file of a checkpoint, named from `folder`: what is wrong with it, "missing" or ""}."""
    home, found = Path(folder) / HOME, {}
    for number in _numbers(home):
        where = home / f"{number:06d}"
        name = where.relative_to(folder).as_posix()
        try:
            seal = _seal(where)
        except PlaitError as error:
            found[f"{name}/{SEAL}"] = str(error)
            continue
        found[f"{name}/{SEAL}"] = ""
        for file, line in seal.items():
            try:
                fault = _fault((where / file).read_bytes(), line)
            except OSError:
                fault = "missing"
            found[f"{name}/{file}"] = fault
    return found


def remove(folder: str | Path) -> None:
    """Remove all checkpoints of `folder`."""
    home = Path(folder) / HOME
    if home.exists():
        _sweep(home, [])
        home.rmdir()


def _read(folder: Path) -> Checkpoint:
    tensors, state = {}, {}
    for name, line in _seal(folder).items():
        path = folder / name
        if not path.is_file():
            raise PlaitError(f"{path} is missing")
        data = path.read_bytes()
        if fault := _fault(data, line):
            raise PlaitError(f"{path} is damaged: {fault}")
        if name == "state.json":
            state = json.loads(data)
        else:
            tensors[path.stem] = from_bytes(data)
    return Checkpoint(tensors, state, folder)


def _seal(folder: Path) -> dict[str, dict[str, int]]:
    """What a checkpoint's seal says of its files."""
    path = folder / SEAL
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        seal, own = read["files"], read["crc32"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PlaitError(f"{path} is missing or damaged") from error
    if own != _checksum(seal):
        raise PlaitError(f"{path} is damaged: its checksum is not the one it was written with")
    return seal


def _fault(data: bytes, line: dict[str, int]) -> str:
    if len(data) != line["bytes"]:
        return f"it has {len(data):,} bytes, expected {line['bytes']:,}"
    return "" if zlib.crc32(data) == line["crc32"] else "its checksum is not the one it was written with"


def _checksum(seal: dict) -> int:
    return zlib.crc32(json.dumps(seal, sort_keys=True).encode())


def _alone(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two in the same memory, as the format wants them."""
    out, seen = {}, set()
    for name, t in content.items():
        t = t.detach().cpu().contiguous()
        place = t.untyped_storage().data_ptr()
        out[name] = t.clone() if place in seen else t
        seen.add(place)
    return out


def _flush(path: Path) -> dict[str, int]:
    """Make sure that the file is on the disk; its size and checksum."""
    checksum = 0
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        while piece := file.read(1 << 22):
            checksum = zlib.crc32(piece, checksum)
        return dict(bytes=file.tell(), crc32=checksum)


def _flush_folder(path: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder, and orders renames by itself
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _numbers(home: Path) -> list[int]:
    return sorted(int(p.name) for p in home.iterdir() if p.name.isdigit()) if home.is_dir() else []


def _sweep(home: Path, keep: list[int]) -> None:
    """Remove all but the checkpoints `keep`. A folder loses its number first: a kill leaves no half-removed
    checkpoint."""
    for path in list(home.iterdir()):
        if path.name.isdigit() and int(path.name) in keep:
            continue
        if path.name.isdigit():
            path = path.replace(path.with_name(path.name + ".old"))
        shutil.rmtree(path)


def _refused(home: Path, error: Exception, before: list[int]) -> str:
    there = next((p for p in (home, *home.parents) if p.exists()), home)
    kept = f"the one before it is whole ({home / f'{before[-1]:06d}'})" if before else "there was none before it"
    free = shutil.disk_usage(there).free / 1e6
    why = f"{refusal(error)} ({free:,.0f} MB free)"
    return f"could not save a checkpoint in {home}: {why}; {kept}. Make room there, then resume."
