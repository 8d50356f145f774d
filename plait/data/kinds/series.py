"""Series: lists of numbers of any length, or of lists of them, one for each channel, also as JSON -> float32 (T, C),
standardised."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from plait.core.declared import Record
from plait.core.tokens import Tokens
from plait.data.kinds.base import SIZE, SPREAD, Bad, FitOptions, Glance, Kind, Missing, Place, cells_of, counted
from plait.data.stores import Ragged
from plait.errors import PlaitError
from plait.parts.positions.sine import sinusoids
from plait.parts.presence import Blank
from plait.parts.scaling import Standardise

MOST_STEPS = 4096
PATCH = 8  # steps a token


class SeriesKind(Kind):
    """The step comes first: [[x, y], [x, y], ...]. A step without any number (null, NaN) is not real; a number that is
    missing among others is the training rows' mean. Lists that mostly are of one length are vectors."""

    name, slot, own_slot = "series", "series", True
    learnt: ClassVar[Record] = Record({"channels": SIZE, "steps": SIZE, "mean": list[float], "std": list[SPREAD]})

    def guess(self, glance: Glance) -> str | None:
        if not (pa.types.is_list(glance.column.type) or glance.is_text):
            return None
        if glance.is_text and not glance.mostly(r"^\s*\["):
            return None
        found = [v for v in map(_try, glance.sample) if v is not None]
        if len(found) < 0.9 * len(glance.sample) or not found:
            return None
        several = Counter(v.shape[1] for v in found).most_common(1)[0][0] > 1
        length, times = Counter(len(v) for v in found).most_common(1)[0]
        if not several and 2 * times > len(found):
            return None  # of one length: a vector
        share = len(found) / len(glance.sample)
        return counted(
            round(share * glance.count), glance.count, "are lists of " + ("steps" if several else "many lengths")
        )

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`channels`, `mean` and `std` of each, and `steps`: the lengths' quantile of `options.longest`."""
        cells = [v for v in map(_try, cells_of(column, 20_000)) if v is not None]
        if not cells:
            return {"channels": 1, "steps": PATCH, "mean": [0.0], "std": [1.0]}
        channels = Counter(v.shape[1] for v in cells).most_common(1)[0][0]
        cells = [v for v in cells if v.shape[1] == channels]
        steps = np.ma.masked_invalid(np.concatenate(cells))
        mean, std = steps.mean(0).filled(0.0), steps.std(0).filled(1.0)
        longest = int(np.ceil(np.quantile([len(v) for v in cells], options.longest)))
        most = min(-(-longest // PATCH) * PATCH, MOST_STEPS)
        std = np.where(std > 1e-12, std, 1.0)
        return {"channels": int(channels), "steps": most, "mean": mean.tolist(), "std": std.tolist()}

    def width(self, params: dict) -> int:
        return params["steps"]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        """NaN where a number is missing."""
        value = read_series(cell)
        if value.shape[1] != params["channels"]:
            raise Bad(f"a series of {value.shape[1]} channels, not of {params['channels']}")
        if np.isnan(value).all():
            raise Missing("empty series")
        if len(value) > params["steps"]:
            place.note("too long")
        return self.preprocess(params)(torch.from_numpy(value[: params["steps"]])).numpy()

    def store(self, rows: int, params: dict) -> Ragged:
        return Steps(rows, np.float32, PATCH, params["steps"], scale=1.0, shape=(params["channels"],))

    def preprocess(self, params: dict) -> nn.Module:
        return Standardise(params["mean"], params["std"])

    def write(self, value: np.ndarray, params: dict) -> list:
        """Steps (T, C) as lists, of one channel as numbers; None where there is no number."""
        x = self.preprocess(params).inverse(torch.from_numpy(np.asarray(value))).numpy()
        rows = [[None if np.isnan(v) else float(v) for v in step] for step in x]
        return [step[0] for step in rows] if params["channels"] == 1 else rows

    def shape(self, columns: dict[str, dict]) -> dict:
        (params,) = columns.values()
        return {"channels": params["channels"], "steps": params["steps"]}

    def arguments(self, shape: dict) -> dict:
        return {"channels": shape["channels"]}

    def tokens(self, width: int, channels: int) -> nn.Module:
        return Patches(width, channels)

    def blank(self, channels: int) -> Blank:
        return (PATCH, channels), torch.float32

    def augment(
        self, x: Tensor, keep: Tensor | None, shape: dict, generator: torch.Generator, strength: float, whole: bool
    ) -> tuple[Tensor, None]:
        """Each series is made a little larger or smaller, and gets noise."""
        size = torch.exp(0.1 * strength * torch.randn((len(x), 1, 1), generator=generator)).to(x)
        noise = 0.05 * strength * torch.randn(x.shape, generator=generator).to(x)
        return (x * size + noise).masked_fill(~keep[..., None], 0.0), None


class Steps(Ragged):
    """Cells (T, C) whose steps without any number are not kept; a number missing among others reads as 0, the mean."""

    def batch(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        x, keep = super().batch(index)
        missing = x.isnan()
        return x.masked_fill(missing, 0.0), keep & ~missing.all(2)


class Patches(nn.Module):
    """(B, T, C), keep (B, T) -> Tokens (B, ceil(T / 8), D): a projection of eight steps and of which of them are real,
    with sinusoid positions; a token without a real step is none."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.channels, self.proj = channels, nn.Linear(PATCH * (channels + 1), width)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        if x.dim() != 3 or x.shape[2] != self.channels:
            raise PlaitError(
                f"got a tensor of shape {tuple(x.shape)}, expected (B, T, {self.channels}): steps of channels"
            )
        keep = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if keep is None else keep
        x = torch.cat([x.masked_fill(~keep[..., None], 0.0), keep[..., None].to(x.dtype)], 2)
        spare = -x.shape[1] % PATCH
        x = nn.functional.pad(x, (0, 0, 0, spare)).unflatten(1, (-1, PATCH)).flatten(2)  # (B, N, P * (C + 1))
        real = nn.functional.pad(keep, (0, spare)).unflatten(1, (-1, PATCH)).any(2)
        x = self.proj(x)
        return Tokens(x + 0.1 * sinusoids(x.shape[1], x.shape[2], x.device).to(x.dtype), keep=real)


def read_series(cell: Any) -> np.ndarray:
    """Lists of numbers, or of steps, or what is written as JSON so, as float64 (T, C), NaN where null. Raises Bad or
    Missing."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise Bad("not a series") from error
    if not isinstance(cell, list):
        raise Bad("not a series")
    if not cell:
        raise Missing("empty series")
    channels = next((len(step) for step in cell if isinstance(step, list)), 1)
    steps = [step if isinstance(step, list) else [step] * channels if step is None else [step] for step in cell]
    if not channels or {len(step) for step in steps} != {channels}:
        raise Bad("steps of different widths")
    if not all(v is None or type(v) in (int, float) for step in steps for v in step):
        raise Bad("not a series of numbers")
    try:
        value = np.asarray([[np.nan if v is None else v for v in step] for step in steps], np.float64)
    except OverflowError as error:
        raise Bad("not a finite number") from error
    if np.isinf(value).any():
        raise Bad("not a finite number")
    return value


def _try(cell: Any) -> np.ndarray | None:
    try:
        return read_series(cell)
    except (Bad, Missing):
        return None
