"""Boxes: a list of what is where in a picture, of any length -> float32 (n, 5): which label, left, top, right, bottom.

A thing is a dict with a label and its box in pixels of the picture, in one of the spellings below; a cell is a list of
them, or columns of lists under the same names ({"bbox": [...], "category": [...]}), also written as JSON.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from plait.core.declared import Record
from plait.data.kinds.base import COUNT, Bad, FitOptions, Glance, Kind, Missing, Place, cells_of
from plait.data.stores import Ragged

LABELS = ("label", "category", "category_id", "class", "name", "type")
CORNERS = (("left", "top", "right", "bottom"), ("xmin", "ymin", "xmax", "ymax"))
SIDES = (("x", "y", "width", "height"),)
MOST = 1000  # things in a picture
LEAST = 0.2  # the share of a box that must be left of it where a picture was cut
NEVER = "never seen"


class BoxesKind(Kind):
    """Never guessed, and asked for alone: no system reads boxes. A label that the training rows lack is one more, so
    that missing it counts."""

    name, slot, own_slot = "boxes", "boxes", True
    learnt: ClassVar[Record] = Record(
        {"values": list, "counts": list[COUNT], "usual": list[tuple[float, float, float, float]], "cells": COUNT}
        | {"most": COUNT}
    )
    follows = lies_on = ("image",)

    def guess(self, glance: Glance) -> None:
        return None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`values`: the labels in order; `counts`: how often each is there; `usual`: the middle box of each; `cells`,
        and `most` things in one."""
        cells = [cell for cell in map(_try, cells_of(column)) if cell is not None]
        found: dict[str, list] = {}
        for label, box in (thing for cell in cells for thing in cell):
            found.setdefault(label, []).append(box)
        values = sorted(found)
        return {
            "values": values,
            "counts": [len(found[v]) for v in values],
            "usual": [np.median(found[v], 0).tolist() for v in values],
            "cells": len(cells),
            "most": max(map(len, cells), default=0),
        }

    def width(self, params: dict) -> int:
        return params["most"]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        things, ids = read_boxes(cell), {label: i for i, label in enumerate(params["values"])}
        if len(things) > MOST:
            place.note("too many")
        if any(label not in ids for label, _ in things):
            place.note(NEVER)
        rows = [[ids.get(label, len(ids)), *box] for label, box in things[:MOST]]
        return np.asarray(rows, np.float32).reshape(-1, 5)

    def store(self, rows: int, params: dict) -> Ragged:
        return Ragged(rows, np.float32, 1, MOST, scale=1.0, shape=(5,))

    def write(self, value: np.ndarray, params: dict) -> str:
        """(n, 5), or (n, 6) with a score last, as JSON."""
        names, things = [*params["values"], NEVER], []
        for label, *box in np.asarray(value, np.float64).tolist():
            things.append({"label": names[int(label)], "box": [round(v, 3) for v in box[:4]]})
            if len(box) == 5:
                things[-1]["score"] = round(box[4], 4)
        return json.dumps(things, ensure_ascii=False)

    def target(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tensor:
        """(B, M, 5), NaN where there is no more."""
        assert keep is not None
        return x.masked_fill(~(keep & present[:, None])[..., None], torch.nan)

    def lay(self, x: Tensor, window: Tensor) -> Tensor:
        low, size = window[:, None, :2].repeat(1, 1, 2), (window[:, None, 2:] - window[:, None, :2]).repeat(1, 1, 2)
        return _cut(torch.cat([x[..., :1], (x[..., 1:5] - low) / size], 2))

    def follow(self, x: Tensor, change: Tensor) -> Tensor:
        """The change (B, 2, 3) says where in what was given each place of the new picture is found, from -1 to 1."""
        left, top, right, bottom = (2 * x[..., 1:5] - 1).unbind(2)
        corners = torch.stack([left, top, right, top, left, bottom, right, bottom], 2).unflatten(2, (4, 2))
        back = torch.linalg.inv(change[:, :, :2])  # (B, 2, 2)
        moved = (corners - change[:, None, None, :, 2]) @ back.mT[:, None]
        moved = (moved + 1) / 2  # (B, M, 4, 2)
        return _cut(torch.cat([x[..., :1], moved.amin(2), moved.amax(2)], 2))


def _cut(x: Tensor) -> Tensor:
    """Boxes (B, M, 5) in shares of a picture, cut at its border; NaN where too little is left."""
    box = x[..., 1:].clamp(0, 1)
    whole, left = (((b[..., 2:] - b[..., :2]).clamp(min=0)).prod(2) for b in (x[..., 1:], box))
    gone = left <= LEAST * whole
    return torch.cat([x[..., :1], box], 2).masked_fill(gone[..., None], torch.nan)


def read_boxes(cell: Any) -> list[tuple[str, list[float]]]:
    """(label, [left, top, right, bottom]) of each thing. Raises Bad or Missing."""
    if isinstance(cell, str):
        if not cell.strip():
            raise Missing("empty text")
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise Bad("not boxes") from error
    if isinstance(cell, dict):
        lists = {k: v for k, v in cell.items() if isinstance(v, list)}
        if not lists or len({len(v) for v in lists.values()}) > 1:
            raise Bad("not boxes")
        cell = [dict(zip(lists, values)) for values in zip(*lists.values())]
    if not isinstance(cell, list) or not all(isinstance(thing, dict) for thing in cell):
        raise Bad("not boxes")
    return [(_label(thing), _box(thing)) for thing in cell]


def _label(thing: dict) -> str:
    found = next((thing[name] for name in LABELS if thing.get(name) is not None), None)
    if not isinstance(found, (str, int)):
        raise Bad(f"a thing without a label ({', '.join(LABELS[:-1])} or {LABELS[-1]})")
    return str(found)


def _box(thing: dict) -> list[float]:
    if thing.get("box") is not None:
        box, sides = thing["box"], False
    elif thing.get("bbox") is not None:
        box, sides = thing["bbox"], True
    else:
        names = next((n for n in (*CORNERS, *SIDES) if all(thing.get(name) is not None for name in n)), None)
        if names is None:
            raise Bad("a thing without a box (box, bbox, xmin..., or x, y, width, height)")
        box, sides = [thing[name] for name in names], names in SIDES
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise Bad("a box that is not four numbers")
    left, top, right, bottom = map(float, box)
    right, bottom = (left + right, top + bottom) if sides else (right, bottom)
    if not np.isfinite([left, top, right, bottom]).all() or right <= left or bottom <= top:
        raise Bad("a box without an area")
    return [left, top, right, bottom]


def _try(cell: Any) -> list[tuple[str, list[float]]] | None:
    try:
        return read_boxes(cell)
    except (Bad, Missing):
        return None
