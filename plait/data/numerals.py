"""How the numbers of a column are written: learnt once from a whole file, and read by that wherever a cell stands.

A style is plain JSON: {"decimal": "." or ",", "units": {what may stand before or after a number: what it is worth}},
and {"interval": "middle"} where cells such as (0, 5] are read as the middle of their ends.
A cell that can be read in one way only is read so whatever the style says: 1.234,5 is what it is everywhere, and only
1.234 and 1,234 ask for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.core.declared import Record
from plait.data.distinct import holds, read_by_value
from plait.data.drawn import drawn
from plait.data.threads import each

MOST = 2000  # cells that units are learnt from
LONGEST = 64  # characters of a number, with all that is around it
CURRENCY = "$¢£¤¥֏؋৲৳฿៛\u20a0-\u20c0﷼"
CODES = frozenset("usd eur gbp chf jpy cny inr aud cad sek nok dkk pln czk huf rub brl zar krw try mxn kr rs fr zł kč "
                  "us$ a$ c$ r$ hk$ nt$ rm".split())  # fmt: skip
SCALES = dict(k=1e3, K=1e3, M=1e6, mn=1e6, Mn=1e6, mio=1e6, Mio=1e6, B=1e9, bn=1e9, Bn=1e9, Mrd=1e9, T=1e12, tn=1e12)
SCALES |= {"lakh": 1e5, "Lakh": 1e5, "cr": 1e7, "Cr": 1e7, "crore": 1e7, "Crore": 1e7, "万": 1e4, "亿": 1e8, "億": 1e8}
FAMILIES = [
    {"mg": 1e-6, "g": 1e-3, "kg": 1.0, "t": 1e3, "lb": 0.45359237, "lbs": 0.45359237, "oz": 0.028349523125},
    {"mm": 1e-3, "cm": 1e-2, "m": 1.0, "km": 1e3, "in": 0.0254, "ft": 0.3048, "yd": 0.9144, "mi": 1609.344},
    {"ml": 1e-3, "cl": 1e-2, "dl": 0.1, "l": 1.0},
    {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12},
    {"hz": 1.0, "khz": 1e3, "mhz": 1e6, "ghz": 1e9},
    {"%": 1.0, "percent": 1.0, "pct": 1.0, "‰": 0.1},
    {"st": 1.0, "nd": 1.0, "rd": 1.0, "th": 1.0},
    dict.fromkeys(("ms", "msec"), 1e-3) | dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0)
    | dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0) | dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0)
    | dict.fromkeys(("d", "day", "days"), 86400.0) | dict.fromkeys(("week", "weeks", "wk", "wks"), 604800.0)
    | dict.fromkeys(("month", "months", "mo"), 2629746.0) | dict.fromkeys(("y", "yr", "year", "years"), 31556952.0),
]  # fmt: skip
WRITTEN = re.compile(
    rf"""(?P<open>\()?\s* (?P<first>[+-])?\s*
    (?P<before>[^\W\d_]{{0,3}}[{CURRENCY}]|[^\W\d_]{{1,4}}\.?)?\s* (?P<second>[+-]|\()?\s*
    (?P<digits>[.,]?\d(?:[\d.,' ]*\d)?\.?) (?P<whole>[.,]--?)? (?P<power>[eE][+-]?\d{{1,3}})?\s*
    (?P<after>[^\W\d_°%‰Ω"″′{CURRENCY}][^\d<>=~:;,()]*[23]?|[°%‰Ω"″′{CURRENCY}][^\d<>=~:;,()]*[23]?)?
    (?P<last>(?<=\d)-)?\s* (?P<close>\))?""",
    re.VERBOSE,
)
APART = re.compile(r"\d{1,3}(?:[ ']\d{3})+(?:[.,]\d*)?")  # 1 234,5 and 1'234.5
FORMS = {
    mark: re.compile(rf"(?:\d+|[1-9]\d{{0,2}}(?:{o}\d{{3}})+|[1-9]\d?(?:{o}\d\d)+{o}\d{{3}})?(?:{m}\d*)?")
    for mark, m, o in ((".", r"\.", ","), (",", ",", r"\."))
}
# what can be read in one way only, and what in two, for whole columns (RE2)
FIRST, LAST = r"(?:^|[^\d.,])", r"(?:$|[^\d.,])"
ONLY = {
    mark: rf"{FIRST}(?:\d+{m}(?:\d\d?|\d{{4,}})|0{m}\d+|\d{{4,}}{m}\d+|{m}\d+|\d{{1,3}}(?:{o}\d{{3}})+{m}\d+"
    rf"|\d{{1,3}}(?:{o}\d{{3}}){{2,}}){LAST}"
    for mark, m, o in ((".", r"\.", ","), (",", ",", r"\."))
}
EITHER = {mark: rf"{FIRST}[1-9]\d{{0,2}}{m}\d{{3}}{LAST}" for mark, m in ((".", r"\."), (",", ","))}
SIMPLE = {".": r"^-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,2})?$", ",": r"^-?\d{1,40}(,\d{1,40})?$"}
LIKE = re.compile(rf"[(+\-\s]*(?:[^\W\d_]{{0,3}}[{CURRENCY}]|[^\W\d_]{{0,4}}\.?)[(\s+-]*[.,]?\d")
SAME = {"usd": "$", "us$": "$", "eur": "€", "gbp": "£", "jpy": "¥", "inr": "₹"}
INTERVAL = re.compile(
    r"[(\[]\s*(-?\d+(?:\.\d*)?(?:e[+-]?\d+)?),\s*(-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*[)\]]", re.IGNORECASE
)
CLOCKS = ("am", "pm", "a.m", "p.m")  # what stands behind an hour makes no amount of it
NO, INFINITE = "not a number", "not a finite number"
PLAIN = {"decimal": ".", "units": {}}
STYLE = Record({"decimal": Literal[".", ","], "units": dict[str, float]}, {"interval": Literal["middle"]})


def tidy(text: str) -> str:
    """ASCII digits, signs and blanks in place of Unicode's many."""
    text = text.strip()
    return text if text.isascii() else _tidied(text)


@lru_cache(maxsize=1 << 16)
def _tidied(text: str) -> str:
    out = []
    for c in unicodedata.normalize("NFKC", text):
        kind = unicodedata.category(c)
        digit = str(unicodedata.decimal(c)) if kind == "Nd" else None
        out.append(digit or (" " if kind == "Zs" else "" if kind == "Cf" else MARKS.get(c, c)))
    return "".join(out).strip()


MARKS = dict.fromkeys("−–‒﹣", "-") | dict.fromkeys("’ʼ`´", "'") | {"٫": ".", "٬": ",", "،": ","}


def number(text: str, style: dict) -> float | str:
    """What a text says in this style, or why it says no number."""
    if len(text) > LONGEST:
        return NO
    if "interval" in style and (ends := INTERVAL.fullmatch(text.strip())):
        return (float(ends[1]) + float(ends[2])) / 2
    found = WRITTEN.fullmatch(tidy(text))
    if found is None or bool(found["open"] or found["second"] == "(") != bool(found["close"]):
        return NO
    signs = [s for s in (found["open"], found["first"], found["second"], found["last"]) if s]
    digits = _digits(found["digits"], (found["whole"] or style["decimal"])[0])  # 50,- has a decimal comma
    if digits is None or len(signs) > 1:
        return NO
    value = float(digits + (found["power"] or ""))
    for token in filter(None, (found["before"], found["after"])):
        worth = _worth(token, style["units"])
        if worth is None:
            return f"a number of something else than {next(iter(style['units']))}" if style["units"] else NO
        value *= worth
    if not np.isfinite(value):
        return INFINITE
    return -value if signs and signs[0] in "(-" else value


def _digits(text: str, decimal: str) -> str | None:
    """As Python writes it: by the style's marks, or else in the only way that is left."""
    if APART.fullmatch(text):
        text = text.replace(" ", "").replace("'", "")
    for mark in (decimal, "," if decimal == "." else "."):
        if FORMS[mark].fullmatch(text):
            return text.replace("," if mark == "." else ".", "").replace(mark, ".")
    return None


def _unit(token: str) -> str:
    """A unit by one name: $ for USD, day for days."""
    token = token.strip().rstrip(".").strip()
    low = token.casefold()
    return SAME.get(low, low[:-1] if len(low) > 3 and low.endswith("s") else low)


def _worth(token: str, units: dict) -> float | None:
    token = token.strip()
    for name in (token, _unit(token)):
        if name in units:
            return units[name]
    money = any(_is_money(unit) for unit in units)
    return 1.0 if (_is_money(token) and not money) or (token == "%" and not units) else None


def _is_money(token: str) -> bool:
    return bool(re.search(f"[{CURRENCY}]", token)) or token.casefold().rstrip(".") in CODES


def read(column: pa.ChunkedArray, style: dict) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """A column of strings as float64 (n,) with 0 where there is nothing, real (n,), and the bad cells."""
    return read_by_value(column, lambda cells: _read_cells(cells, style))


def _read_cells(column: pa.ChunkedArray, style: dict) -> tuple[np.ndarray, np.ndarray, list[tuple[int, str]]]:
    real = column.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    bare = _bare(column, style)
    simple = pc.match_substring_regex(bare, SIMPLE[style["decimal"]]).fill_null(False)
    plain = pc.if_else(simple, bare, pa.scalar(None, column.type))
    plain = pc.replace_substring(plain, ",", ".") if style["decimal"] == "," else plain
    values = np.array(plain.cast(pa.float64()).fill_null(0.0).to_numpy())
    left = np.flatnonzero(real & ~simple.to_numpy(zero_copy_only=False).astype(bool))
    bad: list[tuple[int, str]] = []
    rest = column.take(pa.array(left)).to_pylist() if len(left) else []
    known: dict[str, float | str] = {}
    for i, text in zip(left.tolist(), rest):
        if text not in known:
            known[text] = number(text, style)
        value = known[text]
        if isinstance(value, str):
            real[i] = False
            bad.append((i, value))
        else:
            values[i] = value
    return values, real, bad


def _bare(column: pa.ChunkedArray, style: dict) -> pa.ChunkedArray:
    """The cells without units that are worth 1 and without the marks between thousands, all at once; what is left of a
    cell says the same, or nothing."""
    if "interval" in style:
        return column
    ones = [re.escape(unit) for unit, worth in style["units"].items() if worth == 1]
    money = [re.escape(unit) for unit, worth in style["units"].items() if worth == 1 and unit in CURRENCY]
    if ones:
        column = pc.replace_substring_regex(column, rf"(\d)\s?(?:{'|'.join(ones)})$", r"\1")
    if money:
        column = pc.replace_substring_regex(column, rf"^(-?)(?:{'|'.join(money)})\s?([\d.,])", r"\1\2")
    apart, point = (",", r"\.") if style["decimal"] == "." else (r"\.", ",")
    grouped = pc.match_substring_regex(column, rf"^-?[1-9]\d{{0,2}}(?:{apart}\d{{3}})+(?:{point}\d+)?$").fill_null(
        False
    )
    if not pc.any(grouped).as_py():
        return column
    return pc.if_else(grouped, pc.replace_substring(column, apart[-1], ""), column)


def written(values: pa.ChunkedArray, style: dict) -> pa.ChunkedArray:
    """Numbers as strings that `read` takes for them."""
    texts = values.cast(pa.string())
    return pc.replace_substring(texts, ".", ",") if style["decimal"] == "," else texts


def learn(column: pa.ChunkedArray, mark: str | None = None) -> dict:
    """The style of a column of strings. mark: the decimal mark of the file, for a column that does not tell."""
    point, comma = (_count(column, ONLY[m]) for m in ".,")
    decimal = "." if point > comma else "," if comma > point else mark or "."
    before, after, bare, parts = Counter[str](), Counter[str](), 0, False
    texts = drawn(column, MOST).to_pylist()
    if texts and 20 * sum(t is not None and bool(INTERVAL.fullmatch(t.strip())) for t in texts) >= 19 * len(texts):
        return {"decimal": ".", "units": {}, "interval": "middle"}
    for text in texts:
        found = None if text is None or len(text) > LONGEST else WRITTEN.fullmatch(tidy(text))
        if found is not None and _digits(found["digits"], decimal) is not None:
            before.update([found["before"].strip()] if found["before"] else [])
            after.update([found["after"].strip()] if found["after"] else [])
            bare += not found["after"]
            parts = parts or bool(found["after"] and "." in (_digits(found["digits"], decimal) or ""))
    return {"decimal": decimal, "units": _units(before, after, bare, parts)}


def _units(before: Counter[str], after: Counter[str], bare: int, parts: bool) -> dict[str, float]:
    """What the tokens around numbers are worth: one currency, and one unit, one family of units, or thousands and
    millions. Nothing where they are of many sorts: such cells are no numbers. bare: how many have nothing behind them;
    parts: whether some with a token have decimals, as 1.5M and no number of a room has."""
    money = Counter({_unit(t): n for t, n in (before + after).items() if _is_money(t)})
    named = Counter({t: n for t, n in after.items() if not _is_money(t)})
    if any(_unit(t) in CLOCKS for t in named):
        return {}
    units = {money.most_common(1)[0][0]: 1.0} if money else {}
    total = sum(named.values())
    if not total:
        return units
    scales = SCALES | ({k.lower(): v for k, v in SCALES.items()} if money else {})
    if set(named) <= set(scales) and (len(named) > 1 or (bare and (money or parts))):
        return units | scales
    same = Counter[str]()
    for token, count in named.items():
        same[_unit(token)] += count
    top, most = same.most_common(1)[0]
    for family in FAMILIES:
        names = {_unit(name): worth for name, worth in family.items()}
        if top in names and sum(same[name] for name in names) >= 0.95 * total:
            return units | {top: 1.0} | {name: worth / names[top] for name, worth in names.items()}
    return units | ({top: 1.0} if most >= 0.8 * total and most >= bare else {})


def decimal_mark(columns: list[pa.ChunkedArray], separator: str | None, points: int = 0) -> str | None:
    """The decimal mark of a file, as its columns of strings tell; None where they do not. points: cells of others that
    are decimal numbers already."""
    columns = [c for c in columns if _looks_like_numbers(c)]
    rows = max(map(len, columns), default=0)
    point, comma = (sum(each(lambda c, m=m: _count(c, ONLY[m]), columns, rows)) for m in ".,")
    point += points
    if point != comma:
        return "." if point > comma else ","
    maybe = {m: any(_count(c, EITHER[m]) for c in columns) for m in ".,"}
    return "," if separator == ";" and maybe[","] and not maybe["."] else None


def _looks_like_numbers(column: pa.ChunkedArray) -> bool:
    some = [t for t in column.slice(0, 1000).to_pylist() if t]
    return bool(some) and 2 * sum(len(t) < 40 and LIKE.match(tidy(t)) is not None for t in some) >= len(some)


def _count(column: pa.ChunkedArray, pattern: str) -> int:
    """The cells that match one of ONLY or EITHER."""
    return 0 if not holds(column, b".,") else int(pc.sum(pc.match_substring_regex(column, pattern)).as_py() or 0)
