"""Numbers: standardised by the training rows, heavy tails through a signed logarithm, clipped at 10 standard
deviations."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from plait.data.kinds.base import Bad, Encoded, FitOptions, Glance, Kind, Place, counted
from plait.parts.scaling import HUGE, Standardise
from plait.parts.tokenizers.features import NumberTokens

HEAVY = 50.0  # a value this many interquartile ranges away from the median makes the tails heavy
PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?|[+-]?(\d+\.?\d*|\.\d+)")
COMMA = re.compile(r"[+-]?\d+(,\d+)?|[+-]?\d{1,3}(\.\d{3})+(,\d+)?")
SIMPLE = r"^-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,2})?$"  # every style but the comma's reads it alike
PERCENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+) ?%")


class NumberKind(Kind):
    """Numeric columns, and text columns that are all numbers: 3.5, 1e3; or all like 1,234.5; or all like 12,5; or all
    like 12%."""

    name, slot, own_slot, straight = "number", "number", False, True

    def guess(self, glance: Glance) -> str | None:
        kind = glance.column.type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return f"type {kind}"
        if not glance.is_text or glance.matching(r"^\s*[+-]?0\d"):  # leading zeros: an identifier
            return None
        if glance.count >= 20 and glance.share(lambda v: PLAIN.fullmatch(v.strip()) is not None) >= 0.95:
            return counted(
                round(glance.share(lambda v: PLAIN.fullmatch(v.strip()) is not None) * glance.count),
                glance.count,
                "are numbers",
            )
        style = style_of(glance.sample)
        if style is None or glance.matching(r"^\s*[+-]?\d{16,}\s*$"):
            return None
        return f"all {glance.count:,} cells are numbers" + ("" if style == "plain" else f" written with a {style}")

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`style` of text cells, `log` (the scale of the signed logarithm, or None), `mean` and `std` after it."""
        style = None if _is_numeric(column) else (style_of(column.drop_null().to_pylist()) or "plain")
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
        seen = values[real] if real.any() else np.zeros(1)
        params |= {"log": None, "clip": None, "mean": float(seen.mean()), "std": float(seen.std())}
        return params | {"count": int(real.sum())}

    def width(self, params: dict) -> int:
        return 1

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        return self.standardise(np.asarray([parse_cell(cell, params["style"])]), params)

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """values (n, 1) float32, 0 where missing."""
        values, real, bad = parse_column(column, params["style"])
        out = np.where(real, self.standardise(values, params), 0).astype(np.float32)
        return Encoded(out[:, None], real, bad)

    def preprocess(self, params: dict) -> nn.Module:
        return Standardise(params["mean"], params["std"], params["log"], params.get("clip", 10))

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


def _is_numeric(column: pa.ChunkedArray) -> bool:
    return pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)


def signed_log(x: np.ndarray, scale: float | None) -> np.ndarray:
    """sign(x) log(1 + |x| / scale), or x itself where scale is None."""
    return x if scale is None else np.sign(x) * np.log1p(np.abs(x) / scale)


def parse_column(column: pa.ChunkedArray, style: str | None) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """The column as float64 (n,) with 0 where there is nothing, real (n,), and the bad cells."""
    valid = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    if _is_numeric(column):
        values = column.cast(pa.float64(), safe=False).fill_null(0.0).to_numpy()
        fine = np.isfinite(values)
        bad = [(int(i), "not a finite number") for i in np.flatnonzero(valid & ~fine)]
        return np.where(fine, values, 0.0), valid & fine, bad
    values, left = _plain(column, style)
    bad: list[tuple[int, str]] = []
    rest = column.filter(pa.array(left)).to_pylist() if left.any() else []
    for i, cell in zip(np.flatnonzero(left).tolist(), rest):
        if cell is None:
            continue
        try:
            values[i] = parse_cell(cell, style)
        except Bad as reason:
            valid[i] = False
            bad.append((i, str(reason)))
    return values, valid, bad


def _plain(column: pa.ChunkedArray, style: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Simple numbers in text, all at once: float64 (n,), and which cells are left, (n,) bool."""
    if style == "comma" or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return np.zeros(len(column)), np.ones(len(column), bool)
    simple = pc.match_substring_regex(column, SIMPLE).fill_null(False)
    values = pc.if_else(simple, column, None).cast(pa.float64()).fill_null(0.0).to_numpy()
    return np.array(values), ~simple.to_numpy(zero_copy_only=False).astype(bool)


def parse_cell(cell: Any, style: str | None) -> float:
    """One cell as a float. Raises Bad."""
    if isinstance(cell, str):
        text = cell.strip()
        if style == "comma" and COMMA.fullmatch(text):
            text = text.replace(".", "").replace(",", ".")
        elif style == "thousands comma" and THOUSANDS.fullmatch(text):
            text = text.replace(",", "")
        elif style == "percent sign" and PERCENT.fullmatch(text):
            text = text.rstrip("%").rstrip()
        cell = text
    elif not isinstance(cell, (int, float)):
        raise Bad("not a number")
    try:
        value = float(cell) if not isinstance(cell, str) or "_" not in cell else float("x")
    except (ValueError, OverflowError) as error:
        raise Bad("not a number") from error
    if not np.isfinite(value):
        raise Bad("not a finite number")
    return value


def style_of(cells: list) -> str | None:
    """How the numbers of a text column are written, where every cell is one; else None. Percentages keep their scale
    (12% is 12)."""
    texts = [c.strip() for c in cells if isinstance(c, str)]
    if not texts or len(texts) < len(cells):
        return None
    styles = {"plain": PLAIN, "thousands comma": THOUSANDS, "percent sign": PERCENT, "comma": COMMA}
    return next((name for name, rule in styles.items() if all(rule.fullmatch(t) for t in texts)), None)
