"""Points: clouds of any number of points, in lists or in .npy, .ply and .xyz files -> float32 (P, C), the first three
numbers of each from -1 to 1."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from plait.core.declared import Record, Within
from plait.core.tokens import Tokens
from plait.data.kinds.base import SIZE, SPREAD, Bad, FitOptions, Glance, Kind, Missing, Place, cells_of, counted
from plait.data.stores import Ragged
from plait.errors import PlaitError
from plait.parts.presence import Blank

SUFFIXES = (".npy", ".ply", ".xyz")
MOST, STEP = 16_384, 32  # points
PLY = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
}
PLY |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
PLY |= {"float32": "f4", "float64": "f8"}


class PointsKind(Kind):
    """Lists [[x, y, z, ...], ...] are points only where that is said, since they may be steps as well. Of a cloud with
    more points than nearly all of the training rows some are left out, evenly."""

    name, slot, own_slot, media = "points", "points", True, True
    learnt: ClassVar[Record] = Record(
        {"channels": Within(int, 3, 1 << 16), "points": SIZE, "centre": tuple[float, float, float], "span": SPREAD}
        | {"mean": list[float], "std": list[SPREAD]}
    )

    def guess(self, glance: Glance) -> str | None:
        if not glance.is_text:
            return None
        hits = glance.matching(r"\.(npy|ply|xyz)$", 0.5)
        return counted(hits, glance.count, "end in .npy, .ply or .xyz") if hits * 2 > glance.count else None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`channels`; `points`, the most that are read; `centre` (3) and `span`, which nearly all coordinates lie
        within; `mean` and `std` of the other numbers."""
        cells = []
        for cell in cells_of(column, 2000):
            try:
                cells.append(read_points(cell, options.place))
            except (Bad, Missing):
                continue
        if not cells:
            return {"channels": 3, "points": STEP, "centre": [0.0] * 3, "span": 1.0, "mean": [], "std": []}
        channels = Counter(v.shape[1] for v in cells).most_common(1)[0][0]
        cells = [v for v in cells if v.shape[1] == channels]
        every = np.concatenate(cells)
        low, high = np.quantile(every[:, :3], [0.001, 0.999], axis=0)
        span, std = float((high - low).max() / 2) * 1.05, every[:, 3:].std(0)
        most = int(np.quantile([len(v) for v in cells], options.longest))
        return {
            "channels": int(channels),
            "points": min(-(-most // STEP) * STEP, MOST),
            "centre": ((low + high) / 2).tolist(),
            "span": span if span > 1e-12 else 1.0,
            "mean": every[:, 3:].mean(0).tolist(),
            "std": np.where(std > 1e-12, std, 1.0).tolist(),
        }

    def width(self, params: dict) -> int:
        return params["points"]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        value = read_points(cell, place)
        if value.shape[1] != params["channels"]:
            raise Bad(f"points of {value.shape[1]} numbers, not of {params['channels']}")
        if len(value) > params["points"]:
            place.note("thinned")
            value = value[np.linspace(0, len(value) - 1, params["points"]).astype(np.int64)]
        near = (value[:, :3] - params["centre"]) / params["span"]
        rest = (value[:, 3:] - params["mean"]) / params["std"]
        return np.concatenate([near, rest], 1).clip(-10, 10).astype(np.float32)

    def store(self, rows: int, params: dict) -> Ragged:
        return Ragged(rows, np.float32, STEP, params["points"], scale=1.0, shape=(params["channels"],))

    def write(self, value: np.ndarray, params: dict) -> list:
        """Points (P, C) as lists, in the column's own units."""
        value = np.asarray(value, np.float64)
        near = value[:, :3] * params["span"] + params["centre"]
        rest = value[:, 3:] * np.asarray(params["std"]) + params["mean"]
        return np.concatenate([near, rest], 1).tolist()

    def shape(self, columns: dict[str, dict]) -> dict:
        (params,) = columns.values()
        return {"channels": params["channels"], "points": params["points"]}

    def arguments(self, shape: dict) -> dict:
        return {"channels": shape["channels"]}

    def tokens(self, width: int, channels: int) -> nn.Module:
        return EachPoint(width, channels)

    def blank(self, channels: int) -> Blank:
        return (STEP, channels), torch.float32

    def augment(
        self, x: Tensor, keep: Tensor | None, shape: dict, generator: torch.Generator, strength: float, whole: bool
    ) -> tuple[Tensor, None]:
        """Each cloud is turned about its upright axis, made a little larger or smaller, and shaken."""
        angle = strength * torch.pi * (2 * torch.rand(len(x), generator=generator) - 1)
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3).to(x)
        size = torch.exp(0.1 * strength * torch.randn((len(x), 1, 1), generator=generator)).to(x)
        noise = 0.01 * strength * torch.randn((*x.shape[:2], 3), generator=generator).to(x)
        x = torch.cat([x[..., :3] @ turn.mT * size + noise, x[..., 3:]], 2)
        return x if keep is None else x.masked_fill(~keep[..., None], 0.0), None


class EachPoint(nn.Module):
    """Points (B, P, C), keep (B, P) -> Tokens (B, P, D), one each."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise PlaitError(f"got a tensor of shape {tuple(x.shape)}, expected (B, P, {self.channels}): points")
        return Tokens(self.layers(x if keep is None else x.masked_fill(~keep[..., None], 0.0)), keep=keep)


def read_points(cell: Any, place: Place) -> np.ndarray:
    """A list of points, or what a file holds, as float64 (P, C), C at least 3. Raises Bad or Missing."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise Bad("no points") from error
    try:
        value = np.asarray(cell, np.float64) if isinstance(cell, list) else _file(place.source(cell))
    except (TypeError, OverflowError, KeyError, IndexError) as error:
        raise Bad("no points") from error
    except ValueError as error:
        raise error if isinstance(error, (Bad, Missing)) else Bad("no points") from error
    if value.size == 0:
        raise Missing("a cloud without points")
    if value.ndim != 2 or value.shape[1] < 3:
        raise Bad("no points of at least three numbers")
    if not np.isfinite(value).all():
        raise Bad("a point that is not finite")
    return value


def _file(source: bytes | Path) -> np.ndarray:
    data = source if isinstance(source, bytes) else source.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False), np.float64)
    return _ply(data) if data.startswith(b"ply") else np.loadtxt(io.BytesIO(data), ndmin=2)


def _ply(data: bytes) -> np.ndarray:
    """The vertices of a PLY file, all their numbers; they are its first element."""
    head, _, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii").splitlines()]
    layout = next(line[1] for line in lines if line[0] == "format")
    elements = [i for i, line in enumerate(lines) if line[0] == "element"]
    if lines[elements[0]][1] != "vertex":
        raise Bad("a PLY file whose vertices do not come first")
    count, end = int(lines[elements[0]][2]), elements[1] if len(elements) > 1 else len(lines)
    fields = [(line[2], line[1]) for line in lines[elements[0] : end] if line[0] == "property"]
    if [name for name, _ in fields[:3]] != ["x", "y", "z"]:
        raise Bad("a PLY file whose vertices do not begin with x, y, z")
    if layout == "ascii":
        return np.loadtxt(io.BytesIO(body), ndmin=2, max_rows=count)
    order = "<" if layout == "binary_little_endian" else ">"
    kind = np.dtype([(name, order + PLY[sort]) for name, sort in fields])
    found = np.frombuffer(body, kind, count)
    return np.stack([found[name].astype(np.float64) for name, _ in fields], 1)
