"""Dates and times, months, quarters, weeks and times of day -> eight numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from plait.core.declared import Record
from plait.data import moments
from plait.data.kinds.base import SPREAD, Bad, Encoded, FitOptions, Glance, Kind, Place, Survey, counted
from plait.parts.scaling import Standardise

FEATURES = ("year", "month_sin", "month_cos", "weekday_sin", "weekday_cos", "hour_sin", "hour_cos", "days")


class DatetimeKind(Kind):
    """Eight features: the year (standardised), month, weekday and hour as sine and cosine of their cycle, and the days
    since the training rows' median (standardised, within +-10). Times with a zone are brought to UTC; others are taken
    as they stand.
    Where day and month could be either, and nothing in the file tells, the day comes first."""

    name, slot, own_slot = "datetime", "number", False
    learnt: ClassVar[Record] = Record(
        {"style": moments.STYLE, "median": float, "days_std": SPREAD, "year_mean": float, "year_std": SPREAD}
    )
    features = FEATURES

    def guess(self, glance: Glance) -> str | None:
        kind = glance.column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return f"type {kind}"
        style, share = glance.moment
        n, none = len(glance.sample), glance.share(moments.nothing) if 0.5 <= share < 0.95 else 0.0
        if share + none < 0.95 and not (round((1 - share) * n) == 1 and n >= 4):
            return None
        named = moments.FORMS[style["form"]]
        named = (
            f"ISO {named}" if style["form"] == "date" and glance.matching(r"^\s*\d{4}-\d") == glance.count else named
        )
        one = next((str(c) for c in glance.sample if not moments.nothing(c)), "")
        example = "" if not glance.is_text or named.startswith("ISO") else f" such as {one[:30]}"
        order = f", the {style['first']} first" if example and "first" in style else ""
        return counted(round(share * glance.count), glance.count, f"are {named}{example}{order}")

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`style` of cells that are no dates by type; `median` (seconds since 1970), `days_std`, `year_mean`,
        `year_std`."""
        style = options.style.get("moment")
        if style is None:
            style = moments.DATES if pa.types.is_temporal(column.type) else moments.learn("", column.drop_null())[0]
        seconds, real, _ = moments.read(column, style)
        seconds = seconds[real]
        if len(seconds) == 0:
            return {"style": style, "median": 0.0, "days_std": 1.0, "year_mean": 2000.0, "year_std": 1.0}
        median = float(np.median(seconds))
        days = float(np.std((seconds - median) / 86400)) or 1.0
        years = years_of(seconds)
        return {
            "style": style,
            "median": median,
            "days_std": days,
            "year_mean": float(years.mean()),
            "year_std": float(years.std()) or 1.0,
        }

    def width(self, params: dict) -> int:
        return len(FEATURES)

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        seconds = moments.moment(cell, params["style"])
        if isinstance(seconds, str):
            raise Bad(seconds)
        return self.standardise(np.asarray([seconds]), params)[0]

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """values (n, 8) float32, 0 where missing."""
        seconds, real, bad = moments.read(column, params["style"])
        return Encoded(np.where(real[:, None], self.standardise(seconds, params), 0).astype(np.float32), real, bad)

    def survey(self, column: pa.ChunkedArray, params: dict, place: Place) -> Survey:
        return Survey(*moments.read(column, params["style"])[1:])

    def preprocess(self, params: dict) -> nn.Module:
        """Of the eight features (..., 8)."""
        mean, std = [params["year_mean"], *[0.0] * 7], [params["year_std"], *[1.0] * 6, params["days_std"]]
        return Standardise(mean, std)

    def standardise(self, seconds: np.ndarray, params: dict) -> np.ndarray:
        """Seconds since 1970 (n,) -> float32 (n, 8)."""
        return self.preprocess(params)(torch.from_numpy(expand(seconds, params["median"]))).numpy()

    def write(self, value: np.ndarray, params: dict) -> str:
        """The moment in ISO's form, to the minute: float32 keeps one among decades no finer."""
        days = self.preprocess(params).inverse(torch.from_numpy(np.asarray(value)))[-1].item()
        return str(np.datetime64(60 * round((params["median"] + days * 86400) / 60), "s"))


def years_of(seconds: np.ndarray) -> np.ndarray:
    return seconds.astype("datetime64[s]").astype("datetime64[Y]").astype(np.int64) + 1970.0


def expand(seconds: np.ndarray, median: float) -> np.ndarray:
    """Seconds since 1970 (n,) -> float64 (n, 8), in the order of FEATURES; days since `median`."""
    whole = np.floor(seconds).astype(np.int64)
    month = whole.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64) % 12
    weekday = (whole // 86400 + 3) % 7  # 1 January 1970 was a Thursday; Monday is 0
    hour = (whole % 86400) / 3600
    turns = np.stack([month / 12, weekday / 7, hour / 24], 1) * 2 * np.pi  # (n, 3)
    waves = np.stack([np.sin(turns), np.cos(turns)], 2).reshape(len(seconds), 6)
    return np.concatenate([years_of(whole)[:, None], waves, (seconds - median)[:, None] / 86400], 1)
