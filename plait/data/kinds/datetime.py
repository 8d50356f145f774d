"""Dates and times: ISO and common formats -> eight numbers."""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from plait.data.kinds.base import Bad, Encoded, FitOptions, Glance, Kind, Place, cells_of, counted
from plait.parts.scaling import Standardise

FEATURES = ("year", "month_sin", "month_cos", "weekday_sin", "weekday_cos", "hour_sin", "hour_cos", "days")
DAYS = (
    "%Y/%m/%d",
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d %b %Y",
    "%d %B %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d.%m.%y",
    "%d/%m/%y",
    "%m/%d/%y",
)
TIMES = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
FORMATS = ("iso", *(day + time for day in DAYS for time in TIMES))
ISO = re.compile(r"(\d{4})-(\d\d?)-(\d\d?)(?:[ T](\d\d?):(\d\d)(?::(\d\d)(?:\.(\d+))?)?)? ?(Z|[+-]\d\d:?\d\d)?")


class DatetimeKind(Kind):
    """Eight features: the year (standardised), month, weekday and hour as sine and cosine of their cycle, and the days
    since the training rows' median (standardised, within +-10). Times with a zone are brought to UTC; others are taken
    as they stand.
    Where day and month could be either, the day comes first."""

    name, slot, own_slot = "datetime", "number", False
    features = FEATURES

    def guess(self, glance: Glance) -> str | None:
        kind = glance.column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return f"type {kind}"
        if not glance.is_text:
            return None
        form, share = best_format(glance.sample[:200])
        if share < 0.95:
            return None
        named = (
            "ISO dates" if form == "iso" else f"dates like {datetime(2001, 2, 3, 4, 5, 6).strftime(form)} (3 February)"
        )
        return counted(round(share * glance.count), glance.count, f"are {named}")

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`format` of text cells; `median` (seconds since 1970), `days_std`, `year_mean`, `year_std`."""
        form = None if pa.types.is_temporal(column.type) else best_format(cells_of(column, 2000))[0]
        seconds, real, _ = parse_column(column, form)
        seconds = seconds[real]
        if len(seconds) == 0:
            return {"format": form, "median": 0.0, "days_std": 1.0, "year_mean": 2000.0, "year_std": 1.0}
        median = float(np.median(seconds))
        days = float(np.std((seconds - median) / 86400)) or 1.0
        years = years_of(seconds)
        return {
            "format": form,
            "median": median,
            "days_std": days,
            "year_mean": float(years.mean()),
            "year_std": float(years.std()) or 1.0,
        }

    def width(self, params: dict) -> int:
        return len(FEATURES)

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        return self.standardise(np.asarray([parse_cell(cell, params["format"])]), params)[0]

    def encode_column(self, column: pa.ChunkedArray, params: dict, place: Place) -> Encoded:
        """values (n, 8) float32, 0 where missing."""
        seconds, real, bad = parse_column(column, params["format"])
        return Encoded(np.where(real[:, None], self.standardise(seconds, params), 0).astype(np.float32), real, bad)

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


def parse_column(column: pa.ChunkedArray, form: str | None) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """The column as seconds since 1970 (n,) float64, real (n,), and the bad cells."""
    valid = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        stamps = column.cast(pa.timestamp("s"), safe=False) if pa.types.is_date(column.type) else column
        unit = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[stamps.type.unit]
        seconds = stamps.cast(pa.int64()).fill_null(0).to_numpy() / unit
        fine = np.abs(seconds) < 3e11  # years -7500 to 11500
        return (
            np.where(fine, seconds, 0.0),
            valid & fine,
            [(int(i), "not a date") for i in np.flatnonzero(valid & ~fine)],
        )
    seconds, bad = np.zeros(len(column)), []
    for i, cell in enumerate(column.to_pylist()):
        if cell is None:
            continue
        try:
            seconds[i] = parse_cell(cell, form)
        except Bad as reason:
            valid[i] = False
            bad.append((i, str(reason)))
    return seconds, valid, bad


def parse_cell(cell: Any, form: str | None) -> float:
    """One cell as seconds since 1970. Raises Bad."""
    if isinstance(cell, str):
        text = cell.strip()
        try:
            moment = _iso(text) if form in (None, "iso") else datetime.strptime(text, form)
        except (ValueError, OverflowError) as error:
            raise Bad("not a date") from error
    elif isinstance(cell, datetime):
        moment = cell
    elif isinstance(cell, date):
        moment = datetime(cell.year, cell.month, cell.day)
    else:
        raise Bad("not a date")
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _iso(text: str) -> datetime:
    """ISO 8601 with the liberties that tables take: one-digit parts, a blank before the time, any number of
    decimals."""
    found = ISO.fullmatch(text)
    if found is None:
        raise ValueError("not ISO")
    year, month, day, hour, minute, second, part, zone = found.groups()
    micro = int(((part or "") + "000000")[:6])
    offset = None
    if zone:
        sign = -1 if zone[0] == "-" else 1
        away = timedelta() if zone == "Z" else sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:]))
        offset = timezone(away)
    return datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), micro, offset)


def best_format(cells: list) -> tuple[str, float]:
    """The format that reads most of the cells (the earlier of equals), and the share that it reads."""
    best = ("iso", 0.0)
    if not any(isinstance(cell, str) and len(cell) < 60 and any(map(str.isdigit, cell)) for cell in cells):
        return best  # trying all formats on every column of words takes longer than anything else there is to guess
    for form in FORMATS:
        if best[1] == 1.0:
            break
        share = sum(_reads(cell, form) for cell in cells[:20]) / len(cells[:20])
        if share < max(best[1], 0.3):
            continue
        share = sum(_reads(cell, form) for cell in cells) / len(cells)
        if share > best[1]:
            best = (form, share)
    return best


def _reads(cell: Any, form: str) -> bool:
    try:
        parse_cell(cell, form)
    except Bad:
        return False
    return isinstance(cell, str)
