"""A report on new rows: what has drifted, by how much, and beside which rows."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import plait
from plait.cli import main
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from plait.runs.console import Console
from plait.runs.drift import reference
from plait.runs.moved import moved
from tests.runs.tables import named, table


def frame(rows: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1, rows)
    cells = {"x": x, "z": rng.normal(size=rows), "c": rng.choice(["a", "b", "c"], rows)}
    return pd.DataFrame(cells | {"y": np.where(x + rng.normal(size=rows) > 0, "yes", "no")})


def fitted(source, folder, **how) -> plait.Run:
    quiet = Console(io.StringIO(), quiet=True)
    return plait.fit(source, target="y", out=folder, epochs=1, folds=1, no_ladder=True, console=quiet, **how)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    frame(300, 0).to_csv(folder / "train.csv", index=False)
    fitted(str(folder / "train.csv"), folder / "run")
    return folder


def test_rows_that_are_alike_have_not_drifted(home) -> None:
    found = plait.drift(home / "run", frame(200, 1))
    assert not [c for c in found.columns if c.beyond] and found.auc.low < 0.5 < found.auc.high
    assert "cannot tell 200 new rows from 240 training rows" in found.sentence and found.copies == 0


def test_what_has_drifted_is_told(home, tmp_path) -> None:
    new = frame(200, 2, shift=1.0)
    new.loc[:49, "c"] = "never"
    new.loc[100:139, "z"] = np.nan
    found = plait.drift(home / "run", new)
    told = {(c.column, c.what): c for c in found.columns}
    assert {key for key, c in told.items() if c.beyond} >= {("x", "value"), ("c", "classes"), ("z", "missing cells")}
    assert not told["z", "value"].beyond
    assert told["c", "classes"].unseen == 0.25 and told["z", "value"].missing == (0.0, 0.2)
    assert found.auc.low > 0.6 and "x (value:" in found.sentence
    scores = plait.load(home / "run").evaluate(new).scores
    assert [s.value for s in found.scores] == [s.value for s in scores]
    assert found.before["split"] == "test" and found.before["scores"][0]["name"] == scores[0].name
    found.write(tmp_path / "drift.html")
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert "missing cells" in page and "25.0%" in page and "when it was trained, test rows" in page


def test_without_a_target_or_a_column(home) -> None:
    found = plait.drift(home / "run", frame(60, 3).drop(columns=["y", "z"]))
    assert found.scores == [] and "no scores: 'y' is not known of any new row" in found.said
    assert "Not there: z." in found.sentence
    assert next(c for c in found.columns if c.column == "z").missing == (0.0, 1.0)


def test_copies_of_training_rows_are_counted_and_not_told_apart(home) -> None:
    run = plait.load(home / "run")
    found = plait.drift(run, reference(run))
    assert found.copies == 240 and found.auc.value == pytest.approx(0.5)  # both copies of a row are asked in one half


def test_the_reference_is_the_table_of_the_training_or_none(home, tmp_path) -> None:
    with pytest.raises(DataError, match="is not the table that"):
        plait.drift(home / "run", frame(50, 1), train=frame(300, 9))
    with pytest.raises(DataError, match="lacks the column"):
        plait.drift(home / "run", frame(50, 1), train=frame(300, 0).drop(columns="c"))
    memory, old = frame(120, 4), tmp_path / "run"
    fitted(memory, old)
    with pytest.raises(UsageError, match="--train"):
        plait.drift(old, frame(50, 1))
    assert plait.drift(old, frame(50, 1), train=memory).rows == (50, 96)
    memory.to_csv(tmp_path / "gone.csv", index=False)
    fitted(str(tmp_path / "gone.csv"), tmp_path / "other")
    (tmp_path / "gone.csv").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        plait.drift(tmp_path / "other", frame(50, 1))


def test_the_command_tells_and_writes(home, tmp_path) -> None:
    frame(60, 5, shift=1.0).to_csv(tmp_path / "new.csv", index=False)
    out, words = io.StringIO(), ("report", str(home / "run"), str(tmp_path / "new.csv"))
    with redirect_stdout(out):
        assert main((*words, "-o", str(tmp_path / "drift.html"), "--json")) == 0
    told = json.loads(out.getvalue())
    x = next(c for c in told["columns"] if c["column"] == "x")
    assert x["distance"]["beyond"] and x["distance"]["value"] > 0.3
    assert told["rows"] == 60 and (tmp_path / "drift.html").exists()
    with redirect_stdout(io.StringIO()):
        assert main((*words, "-o", "drift.csv")) == 2


KINDS = ("image", "audio", "series", "points", "vector", "text")


def test_media_are_told_by_what_they_are_as_a_whole() -> None:
    names = named(KINDS)
    first, second = table(KINDS, rows=60, seed=0), table(KINDS, rows=60, seed=1)
    white = io.BytesIO()
    Image.new("RGB", (16, 16), (250, 250, 250)).save(white, "PNG")
    bright = second.set_column(second.column_names.index("photo"), "photo", pa.array([white.getvalue()] * 60))
    read = read_table(first.select(list(names)))
    schema = Schema.guess(read, kinds=names).fit(read, np.arange(60))
    sides = [Rows(read_table(t.select(list(names))), schema).scan() for t in (first, second, bright)]
    columns = schema.used("input")
    alike = moved(columns, sides[0], sides[1])
    assert {c.column for c in alike if c.distance is not None} == set(names) and not [c for c in alike if c.beyond]
    found = [c for c in moved(columns, sides[0], sides[2]) if c.beyond]
    assert {c.column for c in found} == {"photo"} and "brightness" in {c.what for c in found}
