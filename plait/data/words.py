"""What words of cells say: that nothing is there, yes or no, which of the known labels is meant."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from plait.data.distinct import by_value, smooth, values_of

NAMED = ("NA", "N/A", "n/a", "null", "NULL", "Null", "None")  # a person may mean a class by these
NOTHING = (*NAMED, "NaN", "nan", "-nan", "#N/A", "<NA>", "NaT", "#NULL!")  # and machines nothing by all
MARKS = frozenset("? - -- --- – — . .. ... * ** unknown missing none nil n.a. n.d. nd tbd tba error inf -inf infinity "
                  "-infinity #div/0! #value! #ref! #num! #name?".split())  # fmt: skip  # no number, and no date
YES = frozenset("true t yes y 1 on ja oui si sí sim да vrai wahr verdadero 是 はい ✓ ✔".split())
NO = frozenset("false f no n 0 off nein non não нет faux falsch falso 否 いいえ ✗ ✘".split())
EDGES = "\ufeff\u200b\u200c\u200d\u2060\u200e\u200f"  # marks without ink
# kana, Chinese characters, Thai, Lao, Myanmar, Khmer, Tibetan, and emoji
DENSE = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9d\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    "\u2600-\u27bf\U0001f000-\U0001faff\U00020000-\U0003ffff]"
)
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings without what has no ink at their ends, in Unicode's composed form; empty ones are null."""
    column = column.cast(pa.large_string())
    if smooth(column) and pc.all(pc.string_is_ascii(column)).as_py():
        return column
    return by_value(column, _trimmed)


def _trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = pc.utf8_trim_whitespace(column)
    if not pc.all(pc.string_is_ascii(texts)).as_py():
        texts = pc.utf8_normalize(pc.utf8_trim_whitespace(pc.utf8_trim(texts, EDGES)), form="NFC")
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)


def without(column: pa.ChunkedArray, blanks: Sequence[str]) -> pa.ChunkedArray:
    """The strings with null in place of `blanks`, and of cells without ink."""
    found = values_of(column)
    cells = column if found is None else pa.chunked_array([found[0]])
    ends = cells if smooth(cells) else pc.utf8_trim_whitespace(cells)
    nothing = pc.is_in(ends, value_set=pa.array(["", *blanks], column.type))
    if not pc.any(nothing).as_py():
        return column
    if found is not None:
        nothing = nothing.combine_chunks().take(pa.array(found[1], mask=found[1] < 0))
    return pc.if_else(nothing, pa.scalar(None, column.type), column)


def yes_or_no(text: str) -> bool | None:
    """What a word says in any of the languages known here, or None; 1.0 is 1."""
    word = plain_number(text) or unicodedata.normalize("NFKC", text).strip().casefold()
    return True if word in YES else False if word in NO else None


def plain_number(text: str) -> str | None:
    """The number that a text is, written in one way (1.0, "1" and 01 are 1); None of anything else."""
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    if "A" <= text[:1] <= "z":
        return None
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)  # full-width digits
    if not NUMBER.fullmatch(text):
        return None
    digits = text.lstrip("+-")
    if digits.isdigit():
        return ("-" if text.startswith("-") and digits.strip("0") else "") + (digits.lstrip("0") or "0")
    value = float(text)
    return str(int(value)) if abs(value) < 2**63 and value == int(value) else repr(value)


def length(text: str) -> float:
    """How many words a text has: by its blanks; of scripts without blanks two characters are one, and of what else has
    none, such as formulas and addresses, six."""
    total = 0.0
    for word in text.split():
        dense = len(DENSE.findall(word))
        rest = len(word) - dense
        total += dense / 2 + (rest / 6 if rest > 12 else bool(rest) if not dense else rest / 6)
    return total


def folded(text: str) -> str:
    """A text of which only the words count: neither case nor blanks."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


class Labels:
    """Known labels in order, and which of them a text means.

    A text means the label that is spelled so; else the one that is the same number, says the same yes or no, or has the
    same words in another case, where there is exactly one.
    """

    def __init__(self, values: Sequence[str]):
        self.values = list(values)
        said = [yes_or_no(v) for v in self.values]
        self.logical = 1 <= len(said) <= 2 and None not in said and len(set(said)) == len(said)
        self.at: dict[str, int | None] = {}
        for i, value in enumerate(self.values):
            for key in self._keys(value):
                self.at[key] = None if key in self.at else i
        for i, value in enumerate(self.values):
            self.at["=" + value] = i

    def _keys(self, text: str) -> list[str]:
        number, said = plain_number(text), yes_or_no(text) if self.logical else None
        keys = ["#" + number] if number is not None else []
        return [*keys, *([f"?{said}"] if said is not None else []), "~" + folded(text)]

    def find(self, text: str) -> int | None:
        """The place among `values`, or None of a text that means none of them."""
        if "=" + text in self.at:
            return self.at["=" + text]
        return next((i for key in self._keys(text) if (i := self.at.get(key)) is not None), None)


@lru_cache(maxsize=64)
def labels(values: tuple[str, ...]) -> Labels:
    """`Labels`, made once."""
    return Labels(values)


def merged(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """(label, how often) with the spellings of one number, or of one yes or no where all are such words, as one: the
    commonest."""
    pairs = sorted(counts, key=lambda p: (-p[1], p[0]))
    texts = [text for text, _ in pairs]
    said = _all(texts, yes_or_no)
    numbers = {} if any(map(_coded, texts)) else _all(texts, plain_number)
    key = numbers or (said if len(set(said.values())) == 2 else dict(zip(texts, texts)))
    first: dict = {}
    total: Counter = Counter()
    for text, count in pairs:
        total[first.setdefault(key[text], text)] += count
    return sorted(total.items(), key=lambda p: (-p[1], p[0]))


def _all(texts: list[str], read: Callable[[str], Any]) -> dict[str, Any]:
    """{text: what it says}; nothing where one says nothing."""
    found = {}
    for text in texts:
        if (value := read(text)) is None:
            return {}
        found[text] = value
    return found


def _coded(text: str) -> bool:
    """Whether digits are a code: leading zeros are a part of it, and more than 15 digits count nothing."""
    digits = text.lstrip("+-")
    return (digits[:1] == "0" and digits[1:2].isdigit()) or len(digits.split(".")[0]) > 15
