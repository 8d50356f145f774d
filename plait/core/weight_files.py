"""Files of weights as dicts of tensors that lie in the files: nothing is read before it is used.

Tensors of safetensors files, and of pickles in torch's zip format, are private maps: what is written to them never
reaches the file, and a file that is deleted or replaced by another (`os.replace`) lives on behind them. One that is
overwritten in place does not: copy the tensors first.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plait.core.weights import State
from plait.errors import PlaitError

INDEX = ".index.json"
# The usual names of a state dict among other things; averages where nothing else is there.
WRAPPERS = (
    "state_dict",
    "model",
    "module",
    "params",
    "net",
    "network",
    "teacher",
    "student",
    "state_dict_ema",
    "model_ema",
    "params_ema",
    "ema",
)
# Beside tensors these may stand in a pickle: none of them runs anything when it is made.
MADE: list[Any] = [np.zeros(0).__reduce__()[0], np.float64(0).__reduce__()[0]]  # how pickles make arrays and numbers
PLAIN: list[Any] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *((make, f"numpy.{room}.multiarray.{make.__name__}") for make in MADE for room in ("core", "_core")),
    *(type(np.dtype(name)) for name in ("f8", "f4", "f2", "i8", "i4", "u1", "?")),
]
NAMES = tuple(f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", INDEX))
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Weights(State):
    """The tensors of one or more files, by name. `release` takes pages that were read out of memory again."""

    def __init__(self, tensors: State | None = None, maps: Iterable[mmap.mmap] = ()):
        super().__init__(tensors or {})
        self.maps = [(torch.frombuffer(m, dtype=torch.uint8).data_ptr(), m) for m in maps]

    def take(self, other: Weights, before: str = "") -> None:
        """All that `other` holds too, with `before` in front of its names."""
        self.update({before + key: tensor for key, tensor in other.items()})
        self.maps += other.maps

    def release(self, tensors: Iterable[Tensor]) -> None:
        """Forget what was read of `tensors`, none of which may have been written to; it is read again when used."""
        for t in tensors:
            for base, m in self.maps if hasattr(mmap, "MADV_DONTNEED") else ():
                if base <= (begin := t.data_ptr()) < base + len(m):
                    first = (begin - base) // mmap.PAGESIZE * mmap.PAGESIZE
                    m.madvise(mmap.MADV_DONTNEED, first, begin - base + t.nbytes - first)


def read_weights(path: str | Path, under: str = "") -> Weights:
    """All tensors that `path` names: a file, the index (`*.index.json`) of the files beside it, or a folder with one of
    `NAMES`. under: the key of a pickle, where it has that, which they are taken from.

    Of a pickle only tensors and plain containers are read, so that no code runs. Raises ValueError for a file that is
    not there, is damaged, or holds anything else, and for an index that does not tell what its files hold.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        names = [name for name in NAMES if (path / name).is_file()]
        if not names:
            raise PlaitError(f"{path} holds no weights: expected {' or '.join(NAMES)}, or the name of a file")
        path /= names[0]
    return read_shards(path, lambda name: path.parent / name) if path.name.endswith(INDEX) else _read(path, under)


def read_shards(index: Path, find: Callable[[str], Path]) -> Weights:
    """The tensors of all files that `index` names, each of which lies at `find(its name)`."""
    if not index.is_file():
        raise PlaitError(f"no weights file at {index}")
    try:
        told = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(told.values()))
        if not files or any(Path(name).name != name for name in files):
            raise PlaitError("its files must lie beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlaitError(f"{index} is no index of weights: {type(error).__name__}: {error}") from error
    found = Weights()
    for name in files:
        part = _read(find(name))
        if part.keys() != (want := {key for key, file in told.items() if file == name}):
            odd = sorted(part.keys() ^ want)
            raise PlaitError(f"{name} does not hold what {index.name} says: {', '.join(odd[:5])} ({len(odd)} in all)")
        found.take(part)
    return found


def _read(path: Path, under: str = "") -> Weights:
    if not path.is_file():
        raise PlaitError(f"no weights file at {path}")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickle(path, under)


def _safetensors(path: Path) -> Weights:
    """The file's tensors. Its layout: the header's length (8 bytes), the header (JSON), the numbers."""
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        try:
            if size < 8 or 8 + length > size:
                raise PlaitError(f"its header needs {8 + length:,} bytes, and it has {size:,}")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            rows = {k: (DTYPES[v["dtype"]], v["shape"], *v["data_offsets"]) for k, v in header.items()}
            end = 0
            for key, (dtype, shape, begin, stop) in sorted(rows.items(), key=lambda row: row[1][2:]):
                if begin != end or stop - begin != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                    raise PlaitError(f"{key} lies at {begin:,} to {stop:,}, which does not fit its shape {shape}")
                end = stop
            if 8 + length + end != size:
                raise PlaitError(f"its tensors need {8 + length + end:,} bytes, and it has {size:,}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlaitError(
                f"{path} is no safetensors file, or not a whole one: {type(error).__name__}: {error}"
            ) from error
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return Weights({k: _tensor(mapped, d, s, 8 + length + at) for k, (d, s, at, _) in rows.items()}, [mapped])


def _tensor(mapped: mmap.mmap, dtype: torch.dtype, shape: list[int], offset: int) -> Tensor:
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=dtype)
    if offset % dtype.itemsize:  # no rule of the format keeps a tensor from lying askew
        return torch.frombuffer(bytearray(mapped[offset : offset + count * dtype.itemsize]), dtype=dtype).view(shape)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).view(shape)


def _pickle(path: Path, under: str) -> Weights:
    try:
        with path.open("rb") as file:  # only the zip format can be mapped
            zipped = file.read(4) == b"PK\x03\x04"
        with torch.serialization.safe_globals(PLAIN):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise PlaitError(f"{path} {_why(str(error))}") from error
    while not _bare(state):
        inner = [v for key in (under, *WRAPPERS) if isinstance(state, dict) and isinstance(v := state.get(key), dict)]
        if not inner:
            there = ", ".join(map(repr, list(state)[:8])) if isinstance(state, dict) else f"a {type(state).__name__}"
            raise PlaitError(
                f"{path} holds no state dict but {there}: expected names and tensors, bare or under "
                f"{', '.join(map(repr, WRAPPERS))}"
            )
        state = inner[0]
    return Weights({k: v if isinstance(v, Tensor) else torch.from_numpy(v) for k, v in state.items()})


def _bare(state: object) -> bool:
    return isinstance(state, dict) and bool(state) and all(isinstance(v, Tensor | np.ndarray) for v in state.values())


def _why(told: str) -> str:
    """What is wrong with a pickle, of what torch says of it at length and in colours."""
    odd = re.search(r"[Uu]nsupported global: GLOBAL ([\w.]+)", told)
    if odd or "Weights only load failed" in told:
        return (
            f"holds {f'a {odd[1]}' if odd else 'more'} beside its tensors, and none of its code is run: where you "
            "trust it, save the tensors alone: torch.save(torch.load(PATH, weights_only=False)['model'], NEW)"
        )
    return f"is damaged: {told.splitlines()[0] if told else 'it ends too soon'}"
