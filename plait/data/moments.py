"""How dates and times are written in a column: learnt once from a whole file, and read by that wherever a cell stands.

A style is plain JSON: {"form": one of FORMS, "first": "day" or "month"}. Within a form separators, names of months,
missing seconds and zones may differ from cell to cell; which of two numbers is the day may not.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import date, datetime, time, timedelta, timezone
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.core.declared import Record
from plait.data.distinct import read_by_value
from plait.data.drawn import drawn
from plait.data.moment_rules import (
    ALONE,
    COMPACT,
    DAY_NAME,
    DAYS_CLOCK,
    HALF,
    HOUR,
    KANJI,
    MONTH,
    MONTHS,
    NAME_DAY,
    NAME_DAY_TIME,
    NAMED_MONTH,
    QUARTER,
    SEASON,
    SHORT,
    SPAN,
    TRIPLE,
    WEEK,
    YEAR_NAME,
    ZONES,
)
from plait.data.threads import each
from plait.data.words import MARKS

NO = "not a date"
DATES = {"form": "date", "first": "day"}
LONGEST = 80  # characters
MOST = 1000  # cells that the form is learnt from
EPOCHS = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
FORMS = {
    "date": "dates",
    "compact": "dates without marks",
    "short": "dates with years of two digits",
    "month": "months",
    "season": "years such as 1999-00",
    "quarter": "quarters or halves of years",
    "week": "weeks",
    "clock": "times of day or spans of time",
} | {f"epoch {unit}": f"times since 1970 in {unit}" for unit in EPOCHS}
STYLE = Record({"form": Literal[tuple(FORMS)]}, {"first": Literal["day", "month"]})
# dates of every year, for whole columns (RE2)
DAYS = r"((0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
PLAIN = rf"^[1-9]\d{{3}}-{DAYS}( ([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?)?$"
EPOCH = re.compile(r"-?\d+(?:\.\d+)?")
TIMELY = re.compile(
    r"(^|[^a-z])(time|timestamp|ts|date|datetime|epoch|created|updated|unixtime|at)([^a-z]|$)|[a-z](At|Time|Date)$|time$",
    re.I,
)
DATED = re.compile(r"date|day|datum|fecha|yyyymm|^dt|dt$|time|month|period|^ym$", re.IGNORECASE)
CALLED = re.compile(r"date|datum|fecha|yymmdd|^dt|dt$|month|monat", re.IGNORECASE)
ZERO = re.compile(r"[0\s:./-]*")  # what databases put where there is no date


class Unread(Exception):
    """A text that is none of its form."""


def moment(cell: Any, style: dict) -> float | str:
    """Seconds since 1970 that a cell says in this style, or why it says none."""
    if isinstance(cell, datetime):
        return _seconds(cell)
    if isinstance(cell, date):
        return _seconds(datetime(cell.year, cell.month, cell.day))
    if isinstance(cell, time):
        return cell.hour * 3600.0 + cell.minute * 60 + cell.second + cell.microsecond / 1e6
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        cell = str(int(cell)) if cell == cell and abs(cell) < 2**63 and cell == int(cell) else str(cell)
    return _read(cell, style["form"], style.get("first", "day")) if isinstance(cell, str) else NO


@lru_cache(maxsize=1 << 14)
def _read(text: str, form: str, first: str) -> float | str:
    text = text.strip()
    text = text if text.isascii() else unicodedata.normalize("NFKC", text).strip()
    if len(text) > LONGEST:
        return NO
    text = re.sub(r"(?<=\d)\s*\([^\W\d_][^()]{5,}\)$", "", text)  # what JavaScript calls the zone
    try:
        return READERS.get(form, _epoch(form))(text, first)
    except (Unread, ValueError, OverflowError, KeyError):
        return NO


def _date(text: str, first: str) -> float:
    if found := TRIPLE.fullmatch(text):
        a, _, b, c, *rest = found.groups()
        if len(a) > 2:
            return _at(_year(a), int(b), int(c), rest)
        day, month = (a, b) if first == "day" else (b, a)
        return _at(_year(c), int(month), int(day), rest)
    if found := DAY_NAME.fullmatch(text):
        day, name, year, *rest = found.groups()
        return _at(_year(year), MONTHS[name.casefold()], int(day), rest)
    if found := NAME_DAY.fullmatch(text):
        name, day, year, *rest = found.groups()
        return _at(int(year), MONTHS[name.casefold()], int(day), rest)
    if found := NAME_DAY_TIME.fullmatch(text):
        name, day, *rest, year = found.groups()
        return _at(int(year), MONTHS[name.casefold()], int(day), rest)
    if found := YEAR_NAME.fullmatch(text):
        year, name, day, *rest = found.groups()
        return _at(int(year), MONTHS[name.casefold()], int(day), rest)
    if found := KANJI.fullmatch(text):
        year, month, day, *rest = found.groups()
        return _at(int(year), int(month), int(day), [*rest, None, None])
    raise Unread


def _compact(text: str, first: str) -> float:
    year, month, day, *rest = _groups(COMPACT, text)
    hour, minute, second = (int(part or 0) for part in rest)
    return _seconds(datetime(int(year), int(month), int(day or 1), hour, minute, second))


def _short(text: str, first: str) -> float:
    """870521 and, as whole numbers lose their zeros, 80102 for 080102; 1/86 is a month."""
    year, month, day, alone, late = _groups(SHORT, text.zfill(6) if text.isdigit() else text)
    return _at(_year(year or late), int(month or alone), int(day or 1))


def _season(text: str, first: str) -> float:
    """What begins in one year and ends in the next."""
    year, end = _groups(SEASON, text)
    if (int(year) + 1) % 100 != int(end):
        raise Unread
    return _at(int(year), 1, 1)


def _month(text: str, first: str) -> float:
    if found := MONTH.fullmatch(text):
        year, month = found[1] or found[4], found[2] or found[3]
        return _at(int(year), int(month), 1)
    one, year, other, name, last, short = _groups(NAMED_MONTH, text)
    return _at(_year(year or other or short), MONTHS[(one or name or last).casefold()], 1)


def _quarter(text: str, first: str) -> float:
    if found := HALF.fullmatch(text):
        return _at(_year(found[1] or found[4] or found[6]), 6 * int(found[2] or found[3] or found[5]) - 5, 1)
    found = QUARTER.fullmatch(text)
    if found is None:
        raise Unread
    year, quarter = found[1] or found[4] or found[6] or found[8], found[2] or found[3] or found[5] or found[7]
    return _at(_year(year), 3 * int(quarter) - 2, 1)


def _week(text: str, first: str) -> float:
    year, week, day, other, late = _groups(WEEK, text)
    return _seconds(datetime.fromisocalendar(int(year or late), int(week or other), int(day or 1)))


def _clock(text: str, first: str) -> float:
    if found := HOUR.fullmatch(text):
        return _day_part((found[1], found[2] or 0, 0, None, found[3]))
    if found := DAYS_CLOCK.fullmatch(text):
        days, *rest = found.groups()
        return int(days) * 86400 + (_day_part(rest) if rest[0] is not None else 0.0)
    if (found := ALONE.fullmatch(text)) is None:
        found = SPAN.fullmatch(text)
        parts = [float(part or 0) for part in found.groups()] if found and any(found.groups()) else None
        if parts is None:
            raise Unread
        return sum(part * worth for part, worth in zip(parts, (86400, 3600, 60, 1)))
    return _day_part(found.groups())


def _epoch(form: str):
    def read(text: str, first: str) -> float:
        if not EPOCH.fullmatch(text):
            raise Unread
        seconds = float(text) / EPOCHS[form.removeprefix("epoch ")]
        datetime.fromtimestamp(seconds, timezone.utc)  # raises where no year has it
        return seconds

    return read


READERS = {
    "date": _date,
    "compact": _compact,
    "short": _short,
    "month": _month,
    "season": _season,
    "quarter": _quarter,
    "week": _week,
    "clock": _clock,
}


def _groups(rule: re.Pattern, text: str) -> tuple:
    found = rule.fullmatch(text)
    if found is None:
        raise Unread
    return found.groups()


def _year(text: str) -> int:
    """Two digits are of 1969 to 2068."""
    if len(text) == 4:
        return int(text)
    if len(text) != 2:
        raise Unread
    return int(text) + (2000 if int(text) < 69 else 1900)


def _at(year: int, month: int, day: int, rest: Any = ()) -> float:
    """rest: hour, minute, second, decimals, a or p, and zones."""
    seconds = _seconds(datetime(year, month, day))
    if rest and rest[0] is not None:
        if int(rest[0]) > 24:
            raise Unread
        seconds += _day_part(rest[:5])
    zone = next((z for z in rest[5:] if z), None) if rest else None
    if zone in ZONES:
        return seconds - 3600 * ZONES[zone]
    if zone:
        zone = zone[-len(zone.lstrip("UTCGM")) :]
        away = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:].lstrip(":") or 0)).total_seconds()
        seconds += away if zone[0] == "-" else -away
    return seconds


def _day_part(parts: Any) -> float:
    hour, minute, second, decimals, half = parts
    h, m, s = int(hour), int(minute), int(second or 0)
    if m > 59 or s > 60 or (half and not 1 <= h <= 12):
        raise Unread
    h = h % 12 + (12 if half in "pP" else 0) if half else h
    return h * 3600.0 + m * 60 + s + float(f"0.{decimals or 0}")


def _seconds(when: datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()


def read(column: pa.ChunkedArray, style: dict) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """A column as seconds since 1970 (n,) float64 with 0 where there is nothing, real (n,), and the bad cells."""
    real = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        stamps = column.cast(pa.timestamp("s"), safe=False) if pa.types.is_date(column.type) else column
        seconds = stamps.cast(pa.int64()).fill_null(0).to_numpy() / EPOCHS[stamps.type.unit]
        fine = np.abs(seconds) < 3e11  # years -7500 to 11500
        return np.where(fine, seconds, 0.0), real & fine, [(int(i), NO) for i in np.flatnonzero(real & ~fine)]
    if pa.types.is_integer(column.type) and style["form"].startswith("epoch "):
        whole = column.fill_null(0).to_numpy().astype(np.float64)
        return whole / EPOCHS[style["form"].removeprefix("epoch ")], real, []
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return read_by_value(column, lambda cells: _read_cells(cells, style))
    return _read_cells(column, style)


def _read_cells(column: pa.ChunkedArray, style: dict) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    real = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    seconds, done = _at_once(column, style)
    left, bad = np.flatnonzero(real & ~done), []
    for i, cell in zip(left.tolist(), column.take(pa.array(left)).to_pylist() if len(left) else ()):
        value = moment(cell, style)
        if isinstance(value, str):
            real[i] = False
            bad.append((i, value))
        else:
            seconds[i] = value
    return seconds, real, bad


def _at_once(column: pa.ChunkedArray, style: dict) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of the plainest dates in a column of strings, and which cells these are (n,)."""
    none = np.zeros(len(column)), np.zeros(len(column), bool)
    if style["form"] != "date" or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return none
    order = r"\3-\2-\1\4" if style.get("first", "day") == "day" else r"\3-\1-\2\4"
    texts = pc.replace_substring_regex(column, r"^(\d\d)[./-](\d\d)[./-](\d{4})( \d\d:.*)?$", order)
    plain = pc.match_substring_regex(texts, PLAIN).fill_null(False)
    done = plain.to_numpy(zero_copy_only=False).astype(bool)
    if not done.any():
        return none
    stamps = pc.if_else(plain, texts, pa.scalar(None, texts.type)).cast(pa.timestamp("s"))
    return stamps.cast(pa.int64()).fill_null(0).to_numpy().astype(np.float64), done


def learn(name: str, column: pa.ChunkedArray, first: str | None = None) -> tuple[dict, float]:
    """The style that reads most of the cells (n,), none of them null, and the share that it reads of some of them.
    first: what comes first in the file's dates, for a column that does not tell."""
    cells = drawn(column, MOST).to_pylist()
    if pa.types.is_integer(column.type):
        return _learn_numbers(name, cells)
    best: tuple[dict, float] = (DATES | {"first": first or "day"}, 0.0)
    if not any(isinstance(c, str) and len(c) < LONGEST and any(map(str.isdigit, c)) for c in cells):
        return best  # trying all forms on every column of words takes longer than anything else there is to guess
    if TIMELY.search(name) and all(isinstance(c, str) and EPOCH.fullmatch(c) and "." not in c for c in cells):
        best = _learn_numbers(name, [int(c) for c in cells])
        if best[1]:
            return best
    tried = [{"form": "date", "first": f} for f in _order(column, first)]
    tried += [{"form": form} for form in READERS if form not in ("date", "compact", "short")]
    if DATED.search(name):
        tried.append({"form": "compact"})
    if CALLED.search(name):
        tried.append({"form": "short"})
    for style in tried:
        if best[1] == 1.0:
            break
        few = cells[:: max(1, len(cells) // 20)]
        share = sum(_says(c, style) for c in few) / len(few)
        if share < max(best[1], 0.3):
            continue
        share = sum(_says(c, style) for c in cells) / len(cells)
        if share > best[1]:
            best = (style, share)
    return best


def nothing(cell: Any) -> bool:
    """Whether a cell among dates says that there is none."""
    return isinstance(cell, str) and (cell.strip().casefold() in MARKS or bool(ZERO.fullmatch(cell)))


def _says(cell: Any, style: dict) -> bool:
    return isinstance(cell, (str, int)) and not isinstance(moment(cell, style), str)


def _learn_numbers(name: str, cells: list) -> tuple[dict, float]:
    """Whole numbers are dates only where their column is called so."""
    low, high = (min(cells), max(cells)) if cells else (0, 0)
    for unit, parts in EPOCHS.items():
        if TIMELY.search(name) and 5e8 * parts <= low and high < 4e9 * parts:
            return {"form": f"epoch {unit}"}, 1.0
    months = all(1900 <= c // 100 < 2100 and 1 <= c % 100 <= 12 for c in cells)  # 200512 may be one
    if CALLED.search(name) and 1_01 <= low and 10_000 < high <= 99_12_31 and not months:
        style = {"form": "short"}
        return style, sum(_says(c, style) for c in cells) / len(cells)
    style = {"form": "compact"}
    spans = ((1900_01, 2100_01), (1000_01_01, 10_000 * 10_000), (1900_01_01_0000, 2100 * 10**8),
             (1900_01_01_000000, 2100 * 10**10))  # fmt: skip
    if DATED.search(name) and any(least <= low and high < most for least, most in spans):
        return style, sum(_says(c, style) for c in cells) / len(cells)
    return style, 0.0


BEFORE = {"day": r"^\D*(1[3-9]|2\d|3[01])[-/. ]+\d\d?[-/. ]", "month": r"^\D*\d\d?[-/. ]+(1[3-9]|2\d|3[01])[-/. ]"}


def _told(column: pa.ChunkedArray) -> dict[str, int]:
    return {first: int(pc.sum(pc.match_substring_regex(column, rule)).as_py() or 0) for first, rule in BEFORE.items()}


def _order(column: pa.ChunkedArray, first: str | None) -> list[str]:
    """Which of day and month comes first, the likelier before the other: by cells that can only be one, by the file's
    other columns, and the day where nothing tells."""
    told = _told(column)
    day = told["day"] >= told["month"] if told["day"] != told["month"] else first != "month"
    return ["day", "month"] if day else ["month", "day"]


SOME = 1000  # cells that tell whether a column may hold such dates
EITHER = r"^\D*\d\d?[-/. ]+\d\d?[-/. ]"


def _dated(column: pa.ChunkedArray) -> bool:
    """Whether some cells may begin with a day and a month, or a month and a day."""
    some = drawn(column, SOME)
    short = some.filter(pc.less(pc.utf8_length(some), LONGEST))
    return bool(pc.any(pc.match_substring_regex(short, EITHER)).as_py())


def first_of(columns: list[pa.ChunkedArray]) -> str | None:
    """What comes first in the dates of a file's columns of strings; None where they do not tell."""
    some = [c for c in columns if _dated(c)]
    told = each(_told, some, max(map(len, some), default=0))
    day, month = (sum(t[first] for t in told) for first in ("day", "month"))
    return None if day == month else "day" if day > month else "month"
