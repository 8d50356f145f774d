"""Numbers: standardised by the training rows, heavy tails through a signed logarithm, clipped at 10 standard
deviations."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from plait.core.declared import Record, Within
from plait.data import numerals
from plait.data.kinds.base import COUNT, Bad, Encoded, FitOptions, Glance, Kind, Place, Survey, counted
from plait.data.words import MARKS, NOTHING
from plait.parts.scaling import HUGE, Standardise
from plait.parts.tokenizers.features import NumberTokens

HEAVY = 50.0  # a value this many interquartile ranges away from the median makes the tails heavy
DIGITS = 15  # whole numbers of more count nothing: float64 cannot tell them apart
CODES = rf"^\s*[+-]?\d{{{DIGITS + 1},}}\s*$"
ZERO = r"^\s*[+-]?0\d"
BOUND = re.compile(r"[<>≤≥~≈]=?\s*[-+.,\d].*")


class NumberKind(Kind):
    """Numeric columns, and text columns of numbers in any one style (`plait.data.numerals`). Cells that are none are
    bad."""

    name, slot, own_slot, straight = "number", "number", False, True
    learnt: ClassVar[Record] = Record(
        {"style": numerals.STYLE, "log": Within(float | None, 5e-324), "mean": float, "std": Within(float, 0)},
        {"clip": float | None, "count": COUNT},
    )

    def guess(self, glance: Glance) -> str | None:
        kind = glance.column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            dated = pa.types.is_integer(kind) and glance.moment[1] >= 0.95
            return None if dated or many_digits(glance) else f"type {kind}"
        if not glance.is_text or not glance.sample or many_digits(glance) or leading_zeros(glance):
            return None
        style, n = glance.numeral, len(glance.sample)
        others = [v.strip() for v in glance.sample if isinstance(numerals.number(v, style), str)]
        words = [v for v in others if v.casefold() not in MARKS and v not in NOTHING and not BOUND.fullmatch(v)]
        if not _mostly(n - len(others), len(set(glance.numbers.tolist())), words, n):
            return None
        if "interval" in style:
            return f"all {glance.count:,} cells are intervals such as {glance.sample[0]}, read as their middle"
        unit = next(iter(style["units"]), "")
        named = ("" if style["decimal"] == "." else " written with a decimal comma") + (f", in {unit}" if unit else "")
        if not others:
            return f"all {glance.count:,} cells are numbers{named}"
        return counted(round((n - len(others)) / n * glance.count), glance.count, f"are numbers{named}")

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`style` of text cells, `log` (the scale of the signed logarithm, or None), `mean` and `std` after it."""
        style = options.style.get("number")
        if style is None:
            style = numerals.PLAIN if not _is_text(column) else numerals.learn(column.drop_null())
        values, real, _ = parse_column(column, style)
        x = np.clip(values[real], -HUGE, HUGE)
        if len(x) == 0:
            return {"style": style, "log": None, "mean": 0.0, "std": 1.0}
        low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
        spread = high - low
        heavy = spread > 0 and float(np.abs(x - middle).max()) > HEAVY * spread
        log = max(float(np.median(np.abs(x[x != 0]))), 1 / HUGE) if heavy else None
        y = signed_log(x, log)
        low, middle, high = np.quantile(y, [0.25, 0.5, 0.75])
        if high > low:  # a single huge value must not flatten all others
            y = np.clip(y, middle - 20 * (high - low), middle + 20 * (high - low))
        std = float(y.std())
        return {
            "style": style,
            "log": log,
            "mean": float(y.mean()),
            "std": std if np.isfinite(std) and std > 1e-12 * max(1.0, abs(float(y.mean()))) else 1.0,
        }

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """Plain mean and spread, no logarithm and no limit: errors are measured in the column's own unit."""
        params = self.fit(column, options)
        values, real, _ = parse_column(column, params["style"])
        real &= np.abs(values) <= HUGE
        seen = values[real] if real.any() else np.zeros(1)
        params |= {"log": None, "clip": None, "mean": float(seen.mean()), "std": float(seen.std())}
        return params | {"count": int(real.sum())}

    def width(self, params: dict) -> int:
        return 1

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        value = parse_cell(cell, params["style"])
        return self.standardise(np.asarray([value]), params)

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """values (n, 1) float32, 0 where missing."""
        values, real, bad = parse_column(column, params["style"])
        out = np.where(real, self.standardise(values, params), 0).astype(np.float32)
        return Encoded(out[:, None], real, bad)

    def survey(self, column: pa.ChunkedArray, params: dict, place: Place) -> Survey:
        return Survey(*parse_column(column, params["style"])[1:])

    def encode_target(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """A number that is too large to be answered in its own unit is none."""
        found = self.encode_column(column, params, place)
        values, real, _ = parse_column(column, params["style"])
        over = real & (np.abs(values) > HUGE)
        beyond = [(int(i), f"a number beyond {HUGE:g}") for i in np.flatnonzero(over)]
        return Encoded(np.where(over[:, None], 0, found.values), found.real & ~over, [*found.bad, *beyond])

    def preprocess(self, params: dict) -> nn.Module:
        return Standardise(params["mean"], params["std"] or 1.0, params["log"], params.get("clip", 10))

    def standardise(self, values: np.ndarray, params: dict) -> np.ndarray:
        """float64 -> float32, zero mean and unit variance over the training rows, within +-10."""
        return self.preprocess(params)(torch.from_numpy(values)).numpy()

    def undo(self, values: np.ndarray, params: dict) -> np.ndarray:
        """The inverse of `standardise` (where nothing was clipped), float64 in the column's own units."""
        return self.preprocess(params).inverse(torch.from_numpy(np.asarray(values))).numpy()

    def write(self, value: np.ndarray, params: dict) -> float:
        return float(self.undo(value, params).item())

    def shape(self, columns: dict[str, dict]) -> dict:
        return {"width": len(columns), "features": list(columns)}

    def tokens(self, width: int, features: int) -> nn.Module:
        """One token each; missing ones are masked."""
        return NumberTokens(features, width)

    def raw(self, x: Tensor, keep: Tensor | None, features: int) -> Tensor:
        """The numbers beside flags of what is missing."""
        keep = torch.ones_like(x, dtype=torch.bool) if keep is None else keep
        return torch.cat([x.masked_fill(~keep, 0.0), (~keep).float()], 1)

    def raw_width(self, features: int) -> int:
        return 2 * features


def _mostly(fine: int, kinds: int, words: list[str], n: int) -> bool:
    """Whether a column is one of numbers, of which `fine` (of so many `kinds`) among n cells are some, and `words` say
    neither a number nor that there is none: codes of digits and letters have few kinds of either."""
    if not words:
        return fine > 0 and 2 * fine >= n
    if n >= 20 and fine >= 0.95 * n:
        return True
    few = kinds > max(2, 2 * len(set(words))) and (n < 20 or kinds > 10)
    return few and fine >= 0.8 * (fine + len(words))


def many_digits(glance: Glance) -> bool:
    """Whether these are whole numbers too long to count anything."""
    if glance.is_text:
        return 20 * glance.matching(CODES, 0.05) >= max(glance.count, 1)
    if not pa.types.is_integer(glance.column.type) or not glance.count:
        return False
    return 20 * int((np.abs(glance.numbers) >= 10.0**DIGITS).sum()) >= glance.count


def leading_zeros(glance: Glance) -> bool:
    """Whether zeros stand before digits often, or all are of one length: then these are no amounts."""
    zeros = glance.matching(ZERO)
    return zeros > 0 and (20 * zeros >= glance.count or len({len(v.strip()) for v in glance.sample}) == 1)


def _is_numeric(column: pa.ChunkedArray) -> bool:
    return pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)


def _is_text(column: pa.ChunkedArray) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def signed_log(x: np.ndarray, scale: float | None) -> np.ndarray:
    """sign(x) log(1 + |x| / scale), or x itself where scale is None."""
    return x if scale is None else np.sign(x) * np.log1p(np.abs(x) / scale)


def parse_column(column: pa.ChunkedArray, style: dict) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """The column as float64 (n,) with 0 where there is nothing, real (n,), and the bad cells."""
    if _is_text(column):
        return numerals.read(column, style)
    valid = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    if not _is_numeric(column):
        return (
            np.zeros(len(column)),
            np.zeros(len(column), bool),
            [(int(i), numerals.NO) for i in np.flatnonzero(valid)],
        )
    values = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy()
    fine = np.isfinite(values)
    bad = [(int(i), numerals.INFINITE) for i in np.flatnonzero(valid & ~fine)]
    return np.where(fine, values, 0.0), valid & fine, bad


def parse_cell(cell: Any, style: dict) -> float:
    """One cell as a float. Raises Bad."""
    value = numerals.number(cell, style) if isinstance(cell, str) else cell
    if isinstance(value, str) or not isinstance(value, (int, float)):
        raise Bad(value if isinstance(value, str) else numerals.NO)
    try:
        value = float(value)
    except OverflowError as error:
        raise Bad(numerals.INFINITE) from error
    if not np.isfinite(value):
        raise Bad(numerals.INFINITE)
    return value
