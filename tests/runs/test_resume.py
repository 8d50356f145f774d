"""A run goes on with what it keeps: the same table in another form ends with the same bits, another is
refused by name."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

import plait
from plait.errors import DataError, UsageError
from plait.runs.console import Console
from plait.runs.folder import write_json
from plait.runs.stored import SPLITS
from tests.runs.tables import table

N = 60
QUIET = Console(quiet=True)
HOW = dict(target="y", system="auto_toy", folds=1, epochs=2, batch_size=16, precision="fp32", checkpoint_seconds=0.0)


def frame(seed: int = 0, rows: int = N) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, rows))
    kinds = ["train"] * (rows - 20) + ["val"] * 10 + ["test"] * 10
    return pd.DataFrame({"a": a, "b": b, "c": c, "y": np.where(a * 3 - c > 0, "yes", "no"), "side": kinds})


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def unfinished(folder: Path, left: int = 1) -> Path:
    """A finished run as if it was killed after `left` more checkpoints than none."""
    (folder / "model.safetensors").unlink()
    for old in sorted((folder / "checkpoints").iterdir())[left:]:
        shutil.rmtree(old)
    return folder


def bits(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run on a.csv with a column that says the split, and one with tables of its own to watch and test."""
    home = tmp_path_factory.mktemp("resume")
    frame().to_csv(home / "a.csv", index=False)
    frame(1, 30).drop(columns="side").to_csv(home / "test.csv", index=False)
    plait.fit(home / "a.csv", out=home / "whole", split="side", console=QUIET, **HOW)
    own = frame().drop(columns="side").assign(g=[f"g{i // 3}" for i in range(N)])
    own.to_csv(home / "b.csv", index=False)
    tests = pd.read_csv(home / "test.csv").assign(g="z")
    tests.to_csv(home / "test.csv", index=False)
    plait.fit(home / "b.csv", out=home / "own", group="g", test=home / "test.csv", console=QUIET, **HOW)
    return home


@pytest.mark.parametrize("left", [1, 0])
def test_columns_in_another_order_and_others_beside_them_end_with_the_same_bits(home, tmp_path, left):
    shutil.copytree(home / "whole", tmp_path / "run")
    moved = frame()[["side", "c", "y", "b", "a"]].assign(other=range(N), d=np.random.default_rng(3).normal(size=N))
    moved = moved[["other", "c", "d", "side", "y", "b", "a"]]
    plait.fit(moved, out=unfinished(tmp_path / "run", left), resume=True, console=QUIET)
    assert bits(tmp_path / "run") == bits(home / "whole")


def test_the_splits_are_in_the_run(home):
    kept = pq.read_table(home / "whole" / SPLITS).to_pandas()
    assert kept["split"].tolist() == frame()["side"].tolist() == kept["drawn"].tolist()
    own = pq.read_table(home / "own" / SPLITS).to_pandas()
    assert len(own) == N + 30 and (own["split"][N:] == "test").all() and set(own["split"][:N]) == {"train", "val"}


def cell(name: str, row: int, value):
    def change(data: pd.DataFrame) -> pd.DataFrame:
        data = data.copy()
        data.loc[row, name] = value
        return data

    return change


@pytest.mark.parametrize(
    "change, said",
    [
        (cell("a", 5, 0.123), "the cells of 'a' are not the same"),
        (lambda d: cell("y", 5, "yes" if d["y"][5] == "no" else "no")(d), "the cells of the target 'y' are"),
        (cell("side", 55, "train"), "the cells of the split column 'side' are"),
        (lambda d: d.assign(a=d["b"], b=d["a"]), "the cells of 'a', 'b' are"),
        (lambda d: d.iloc[::-1], "the rows of it stand in another order"),
        (lambda d: d.iloc[:-1], "it has 59 rows and had 60"),
        (lambda d: pd.concat([d, d.iloc[:1]]), "it has 61 rows and had 60"),
        (lambda d: d.drop(columns="c"), "it lacks the column 'c'"),
        (lambda d: d.drop(columns="side"), "it lacks the column 'side'"),
    ],
)
def test_another_table_is_refused_by_name(home, tmp_path, change, said):
    shutil.copytree(home / "whole", tmp_path / "run")
    before = {p: p.read_bytes() for p in unfinished(tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(DataError) as error:
        plait.fit(change(frame()), out=tmp_path / "run", resume=True, console=QUIET)
    assert said in str(error.value) and "is not the table" in str(error.value)
    assert all(p.read_bytes() == data for p, data in before.items())


@pytest.mark.parametrize("name, column", [("test.csv", "b"), ("test.csv", "y"), ("b.csv", "g")])
def test_tables_beside_it_and_groups_count(home, tmp_path, name, column):
    for part in ("own", "b.csv", "test.csv"):
        (shutil.copytree if part == "own" else shutil.copy)(home / part, tmp_path / part)
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config["source"], config["settings"]["test"] = str(tmp_path / "b.csv"), str(tmp_path / "test.csv")
    write_json(tmp_path / "own" / "config.json", config)
    unfinished(tmp_path / "own")
    data = pd.read_csv(tmp_path / name)
    data.loc[3, column] = {"b": 0.5, "y": {"yes": "no", "no": "yes"}[data["y"][3]], "g": "g7"}[column]
    kept = (tmp_path / name).read_bytes()
    data.to_csv(tmp_path / name, index=False)
    part = {"test.csv": "test", "b.csv": "train"}[name]
    with pytest.raises(DataError, match=f"in the {part} table the cells of .*'{column}' are not the same"):
        plait.fit(out=tmp_path / "own", resume=True, console=QUIET)
    (tmp_path / name).write_bytes(kept)
    plait.fit(out=tmp_path / "own", resume=True, console=QUIET)
    assert bits(tmp_path / "own") == bits(home / "own")


def test_pictures_count_by_their_bytes(tmp_path):
    for i in range(24):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    pd.DataFrame({"photo": [f"{i}.png" for i in range(24)], "y": ["p", "q"] * 12}).to_csv(
        tmp_path / "t.csv", index=False
    )
    plait.fit(tmp_path / "t.csv", out=tmp_path / "run", image_size=16, console=QUIET, **HOW)
    first = bits(tmp_path / "run")
    (tmp_path / "3.png").write_bytes(picture(99))
    with pytest.raises(DataError, match="the cells of 'photo' are not the same"):
        plait.fit(out=unfinished(tmp_path / "run"), resume=True, console=QUIET)
    (tmp_path / "3.png").write_bytes(picture(3))
    plait.fit(out=tmp_path / "run", resume=True, console=QUIET)
    assert bits(tmp_path / "run") == first


@pytest.mark.parametrize("kinds, options", [(("image", "text"), dict(task="match")), (("text", "number"), {})])
def test_pairs_that_were_drawn_and_learnt_words_are_the_same_again(tmp_path, kinds, options):
    data = table(kinds).select([{"image": "photo", "text": "note", "number": "size"}[k] for k in kinds] + ["label"])
    how = HOW | dict(image_size=16) | (options or dict(target="label"))
    if options:
        how |= dict(target=None, inputs=["photo", "note"])
    plait.fit(data, out=tmp_path / "run", console=QUIET, **how)
    first, bad = bits(tmp_path / "run"), (tmp_path / "run" / "bad_rows.parquet").read_bytes()
    plait.fit(data.select(data.column_names[::-1]), out=unfinished(tmp_path / "run"), resume=True, console=QUIET)
    assert bits(tmp_path / "run") == first and (tmp_path / "run" / "bad_rows.parquet").read_bytes() == bad


def test_a_table_to_test_in_memory_with_arrays_for_cells(tmp_path):
    def vectors(seed: int, rows: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        v = [rng.normal(size=3) for _ in range(rows)]
        return pd.DataFrame({"v": v, "y": ["yes" if x[0] > 0 else "no" for x in v]})

    plait.fit(vectors(0, 50), test=vectors(1, 20), out=tmp_path / "run", console=QUIET, **HOW)
    first = bits(tmp_path / "run")
    with pytest.raises(UsageError, match="this run's test table was in memory"):
        plait.fit(vectors(0, 50), out=unfinished(tmp_path / "run"), resume=True, console=QUIET)
    with pytest.raises(DataError, match="in the test table the cells of 'v'"):
        plait.fit(vectors(0, 50), test=vectors(2, 20), out=tmp_path / "run", resume=True, console=QUIET)
    plait.fit(vectors(0, 50), test=vectors(1, 20), out=tmp_path / "run", resume=True, console=QUIET)
    assert bits(tmp_path / "run") == first


def test_a_run_without_its_splits_does_not_go_on(home, tmp_path):
    shutil.copytree(home / "whole", tmp_path / "run")
    (unfinished(tmp_path / "run") / SPLITS).unlink()
    with pytest.raises(DataError, match="cannot go on: it has no splits.parquet"):
        plait.fit(out=tmp_path / "run", resume=True, console=QUIET)
