"""The kinds of columns. A new kind is a file here with a subclass of `Kind`, and a line in `KINDS`; guesses are tried
in this order."""

from __future__ import annotations

from plait.data.kinds.audio import AudioKind
from plait.data.kinds.base import Bad, Kind, Missing, Place
from plait.data.kinds.boolean import BooleanKind
from plait.data.kinds.boxes import BoxesKind
from plait.data.kinds.category import CategoryKind
from plait.data.kinds.datetime import DatetimeKind
from plait.data.kinds.image import ImageKind
from plait.data.kinds.labels import LabelsKind
from plait.data.kinds.number import NumberKind
from plait.data.kinds.ordinal import OrdinalKind
from plait.data.kinds.points import PointsKind
from plait.data.kinds.series import SeriesKind
from plait.data.kinds.spelling import SpellingKind
from plait.data.kinds.text import TextKind
from plait.data.kinds.vector import VectorKind

KINDS: dict[str, Kind] = {
    "image": ImageKind(),
    "audio": AudioKind(),
    "points": PointsKind(),
    "series": SeriesKind(),
    "vector": VectorKind(),
    "labels": LabelsKind(),
    "boolean": BooleanKind(),
    "number": NumberKind(),
    "datetime": DatetimeKind(),
    "text": TextKind(),
    "category": CategoryKind(),
    "ordinal": OrdinalKind(),
    "spelling": SpellingKind(),
    "boxes": BoxesKind(),
}

__all__ = ["KINDS", "Bad", "Kind", "Missing", "Place"]
