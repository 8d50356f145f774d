"""Which columns are worth reading: a column that only tells rows apart is left out, but it takes evidence to be one."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from plait.data.kinds import KINDS
from plait.data.kinds.base import Glance, counted
from plait.data.kinds.number import many_digits
from plait.data.words import length

UUID = r"^\{?[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\}?$"
HASH = r"^(0x)?[0-9a-f]{16,128}$"
NAMED = re.compile(
    r"(^|[_ .-])(id|ids|idx|index|uuid|guid|key|row|rownumber|row_?names?|nr|sku|isbn|ean|barcode|hash)$"
    r"|^unnamed|^column_1$|^$|^s\.?no\.?$|^#$",
    re.IGNORECASE,
)
CAMEL = re.compile(r"[a-z](Id|ID|Key|Nr|No|Idx|Index)$")
COUNTED = re.compile(r"(?i:^(obs|observation|no\.?|num|number|seq|serial|rec|record|n|rank)$)|^X(\.\d+)?$")
THINGS = re.compile(r"(?i:(^|[_ .-])(id|code|zip|zip_?code|post(al)?_?code|plz)$)|[a-z](Id|ID|Code)$")
# What rows are about, one by one or again and again, and the sorts of these: whole numbers called so have no size.
UNITS = frozenset(
    "animal block case center centre chamber clinic commune company county country district firm herd hospital "
    "household individual inst institution judge litter pair participant patient person player plot province pupil "
    "rater region respondent site state station store student subject village".split()
)
SORTS = frozenset(
    "airline batch brand cluster condition cultivar department dept ethn ethnicity gender group industry "
    "method party race religion sector sex species status strain strata stratum treat treatment trt type "
    "variety".split()
)
OWNERS = (
    UNITS
    | SORTS
    | frozenset(  # of ids that are written in one word
        "account employee family h hh house item order p passenger product record row sample school town transaction u "
        "user customer".split()
    )
)
FEW = 5  # cells: of fewer nothing can be told
LOOK = 1000  # of which some tell decimals from whole numbers


def named_so(name: str) -> bool:
    """Whether a column's name says that it tells rows apart."""
    return bool(NAMED.search(name.strip()) or CAMEL.search(name.strip()) or _one_word(name))


def _last(name: str) -> str:
    """The last word of a name, such as "type" of car.type and carType."""
    return re.split(r"[\W_]|(?<=[a-z])(?=[A-Z])", name.strip())[-1].casefold()


def _one_word(name: str) -> bool:
    """Whether a name is one of ids in one word, such as townid and idcase; acid and paid are none."""
    word = _last(name)
    return (word.endswith("id") and word[:-2] in OWNERS) or (word.startswith("id") and word[2:] in OWNERS)


def codes(glance: Glance) -> str | None:
    """Why whole numbers that are there again are codes and no amounts, or None: they are called so, or are 1 and 2."""
    if glance.count < FEW or (glance.numbers[:LOOK] % 1 != 0).any() or not 2 <= glance.distinct <= glance.count / 2:
        return None
    name, numbers = glance.name.strip(), np.unique(glance.numbers)
    if (numbers % 1 != 0).any():
        return None
    different = f"{glance.distinct:,} different numbers in {glance.count:,} cells"
    way_out = f"(--kind {glance.name}=number: amounts)"
    if THINGS.search(name) or _last(name) in UNITS | SORTS or _one_word(name):
        return f"{different}, named as codes are {way_out}"
    if glance.distinct == 2 and numbers.tolist() == [1, 2] and not glance.numeral["units"]:
        return f"1 and 2 in {glance.count:,} cells, as two classes are numbered {way_out}"
    return None


def useless(glance: Glance, kind: str) -> str | None:
    """Why a column that was not asked for is not worth reading, or None."""
    if glance.constant and not glance.one_or_blank:
        if KINDS[kind].media:
            return "constant: every cell is the same"
        return f"constant: every cell is {str(glance.sample[0])[:60]!r}"
    if kind == "category" and not pa.types.is_nested(glance.column.type) and not glance.is_text:
        if not _categorical(glance.column.type):
            return f"type {glance.column.type}, which no kind recognises"
    return None


def identifier(glance: Glance, kind: str) -> str | None:
    """Why a column seems to tell rows apart and no more, or None: its values differ, and its name or their form says
    so."""
    numbers = pa.types.is_integer(glance.column.type) and kind != "datetime"
    if not numbers and (kind not in ("category", "text") or not glance.is_text):
        return None
    if glance.count < FEW or (numbers and _narrow(glance)) or glance.distinct * 20 < glance.count * 19:
        return None
    if numbers:
        return _numbers(glance)
    if glance.mostly(UUID):
        return counted(glance.matching(UUID, 0.95), glance.count, "are uuids")
    different = f"{glance.distinct:,} different values in {glance.count:,} cells"
    if many_digits(glance):
        return f"an identifier: {different}, of more than 15 digits"
    if glance.mostly(HASH) and len({len(v) for v in glance.sample}) == 1:
        return f"an identifier: {different}, all hexadecimal and of one length"
    words = float(np.mean([len(v.split()) for v in glance.sample]))
    if float(np.mean([length(v) for v in glance.sample])) <= 2 and (form := _form(glance.sample)):
        return f"an identifier: {different}, {form}"
    return f"an identifier: {different}, named {glance.name!r}" if named_so(glance.name) and words < 2 else None


def _narrow(glance: Glance) -> bool:
    """Whether whole numbers lie so close that many are the same."""
    low, high = (int(v) for v in pc.min_max(glance.filled).as_py().values())
    return (high - low + 1) * 20 < glance.count * 19


def _numbers(glance: Glance) -> str | None:
    if many_digits(glance):
        return f"an identifier: {glance.distinct:,} different whole numbers of more than 15 digits"
    if glance.distinct < glance.count:
        return None
    low, high = (int(v) for v in pc.min_max(glance.column).as_py().values())
    named = named_so(glance.name) or _last(glance.name) in UNITS
    if high - low + 1 == glance.count:
        ordered = bool((np.diff(glance.filled.to_numpy().astype(np.int64)) == 1).all())
        if named or (low in (0, 1) and ordered and COUNTED.search(glance.name.strip())):
            return f"row numbers: every whole number from {low:,} to {high:,} once"
    if named:
        return f"an identifier: {glance.count:,} different whole numbers, named {glance.name!r}"
    return None


def _form(cells: list[str]) -> str | None:
    """What cells have in common that only number things: nothing but their digits differs, or letters and digits
    change places nowhere."""
    texts = [c.strip() for c in cells]
    if not all(any(map(str.isdigit, t)) for t in texts[:20]):
        return None
    bare = {re.sub(r"\d+", "9", t) for t in texts}
    if len(bare) <= max(1, len(texts) // 50) and any(map(str.isalpha, texts[0])):
        return "which differ in their digits alone"
    shapes = {re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", t)) for t in texts}
    if len(shapes) == 1 and sum(map(str.isdigit, texts[0])) >= 3 and not set(texts[0]) & set(".,:/"):
        return f"all such as {texts[0][:30]}"
    return None


def _categorical(kind: pa.DataType) -> bool:
    return (
        pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_temporal(kind)
    )
