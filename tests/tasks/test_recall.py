"""What stands in texts is remembered, and names are given back as they were written."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

import plait
from plait.errors import DataError
from plait.runs.console import Console
from plait.tasks.recall import Recall

PLACES = ["the red harbour", "a green hill", "the old mill", "some blue lake", "the tall tower", "a white barn"]
FAST = dict(target="name", task="recall", system="dsi_toy", kinds={"text": "text"}, split="split", precision="fp32")


def library(names: list[str], seed: int = 0) -> pa.Table:
    """Texts with their names, and questions in other words about them."""
    rng, rows = np.random.default_rng(seed), []
    for place, name in zip(PLACES, names, strict=True):
        rows.append((f"{place} is where boats and birds rest", name, "train"))
        for split, times in (("train", 8), ("val", 2), ("test", 2)):
            for _ in range(times):
                opening = rng.choice(["who knows", "tell me of", "where might be", "is there"])
                rows.append((f"{opening} {place}", name, split))
    return pa.table(dict(zip(("text", "name", "split"), zip(*rows))))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    names = [f"Doc-{i}/A" for i in range(6)]
    how = dict(epochs=40, lr=5e-3, batch_size=16, out=tmp_path_factory.mktemp("recall") / "run")
    return plait.fit(library(names), **FAST | how, console=Console(quiet=True))


def test_questions_are_answered_by_names_as_they_were_written(run):
    scores = {s.name: s.value for s in run.assessments["test"].scores}
    assert list(scores) == ["hits@1", "hits@10", "reciprocal rank"]
    assert scores["hits@1"] > 0.8 and scores["hits@10"] == 1.0  # there are six
    told = plait.load(run.folder).predict({"text": ["tell me of a green hill", "is there the old mill", None]})
    assert told.column("name").to_pylist()[:2] == ["Doc-1/A", "Doc-2/A"]
    assert {f"name {k}" for k in range(2, 6)} <= set(told.column_names)
    p = np.stack([told.column(n).to_numpy() for n in told.column_names if n.startswith("probability")], 1)[:2]
    assert (np.diff(p, axis=1) <= 0).all() and (p.sum(1) <= 1 + 1e-6).all() and p[:, 0].min() > 0.3


def test_no_other_name_is_ever_written(run):
    strange = {"text": ["zebra quantum", "boats", "Doc-9/A", "the red hill of the old lake"]}
    told = run.predict(strange)
    names = [told.column(n).to_pylist() for n in told.column_names if n == "name" or n.startswith("name ")]
    for found in zip(*names):
        assert set(found) <= {f"Doc-{i}/A" for i in range(6)} and len(set(found)) == len(found)


def test_names_stand_in_the_run(run):
    stored = json.loads((run.folder / "config.json").read_text())["task"]
    assert stored["task"] == "recall" and sorted(name for _, name in stored["names"]) == [
        f"Doc-{i}/A" for i in range(6)
    ]
    assert plait.load(run.folder).task.to_json() == stored


def test_names_that_the_tokenizer_cannot_tell_apart_are_refused(tmp_path):
    table = library(["a 1", "A 1", "b", "c", "d", "e"])
    with pytest.raises(DataError, match="'a 1' and 'A 1'|'A 1' and 'a 1'"):
        plait.fit(table, **FAST, epochs=1, out=tmp_path / "run", console=Console(quiet=True))


def test_what_was_never_taught_is_wrong(run):
    table = library([f"Doc-{i}/A" for i in range(5)] + ["never"])
    asked = table.filter(pa.compute.equal(table["split"], "test"))
    scores = {s.name: s.value for s in run.evaluate(asked).scores}
    assert scores["hits@10"] == pytest.approx(10 / 12)


def test_it_reads_texts():
    assert Recall.reads(["text"]) and Recall.reads(["text", "image"]) and not Recall.reads(["image"])
