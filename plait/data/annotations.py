"""Boxes as data sets keep them, as tables of two columns: `image`, a path, and `boxes`, what the kind `boxes` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
from PIL import Image

from plait.data.folder import IMAGE_SUFFIXES
from plait.data.table import Table
from plait.errors import DataError


def read_coco(file: str | Path, pictures: str | Path | None = None) -> Table:
    """COCO's JSON: images, annotations, categories. pictures: the folder of its files, that of `file` unless given.
    Boxes around crowds are left out, which COCO does not score either."""
    path = Path(file)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names = {c["id"]: c["name"] for c in data["categories"]}
        found: dict[Any, list] = {image["id"]: [] for image in data["images"]}
        for a in data["annotations"]:
            if not a.get("iscrowd"):
                found[a["image_id"]].append({"label": names[a["category_id"]], "bbox": a["bbox"]})
        rows = [(image["file_name"], found[image["id"]]) for image in data["images"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no file of COCO's boxes ({type(error).__name__}: {error}): expected images, annotations with "
            "image_id, category_id and bbox, and categories"
        ) from error
    return _table(rows, path.parent if pictures is None else Path(pictures), path)


def read_voc(folder: str | Path, pictures: str | Path | None = None) -> Table:
    """Pascal VOC's XML files, one for each picture. pictures: the folder of these, `folder` unless given."""
    where, rows = Path(folder), []
    for path in sorted(where.glob("*.xml")):
        try:
            root = ElementTree.parse(path).getroot()
            things = []
            for thing in root.iter("object"):
                box = thing.find("bndbox")
                sides = {n: float(_said(box, n)) for n in ("xmin", "ymin", "xmax", "ymax")}
                things.append({"label": _said(thing, "name"), **sides})
            rows.append((_said(root, "filename"), things))
        except (ElementTree.ParseError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path} is no file of VOC's boxes ({error}): expected filename, and object with name and bndbox"
            ) from error
    return _table(rows, where if pictures is None else Path(pictures), where)


def read_yolo(labels: str | Path, pictures: str | Path, names: list[str]) -> Table:
    """YOLO's text files, named as their pictures: a line is a class, then the box's middle, width and height as shares
    of the picture. names: of the classes. A picture without a file has no thing."""
    rows = []
    for path in sorted(p for p in Path(pictures).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
        text, things = Path(labels) / f"{path.stem}.txt", []
        with Image.open(path) as picture:
            wide, high = picture.size
        for line in text.read_text(encoding="utf-8").splitlines() if text.is_file() else ():
            try:
                label, (x, y, w, h) = names[int(line.split()[0])], map(float, line.split()[1:5])
            except (ValueError, IndexError) as error:
                raise DataError(
                    f"{text}: got {line!r}, expected a class from 0 to {len(names) - 1} and four numbers"
                ) from error
            things.append({"label": label, "bbox": [(x - w / 2) * wide, (y - h / 2) * high, w * wide, h * high]})
        rows.append((path.name, things))
    return _table(rows, Path(pictures), Path(labels))


def _said(parent: ElementTree.Element | None, name: str) -> str:
    child = None if parent is None else parent.find(name)
    if child is None or not child.text:
        raise DataError(f"no {name}")
    return child.text.strip()


def _table(rows: list[tuple[str, list]], root: Path, source: Path) -> Table:
    if not rows:
        raise DataError(f"{source} holds no picture with boxes")
    columns = {"image": [name for name, _ in rows], "boxes": [json.dumps(things) for _, things in rows]}
    return Table(pa.table(columns), root.resolve(), str(source))
