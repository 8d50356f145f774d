"""Series: what is recognised, learnt and made of ragged, many-channelled and half-missing cells, as input and
target."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

import plait
from plait.data.kinds import KINDS, Bad, Missing, Place
from plait.data.kinds.base import Glance
from plait.data.kinds.series import Patches
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.runs.console import Console

HERE, NAN = Place(), float("nan")


def guessed(cells: list) -> str:
    column = read_table({"x": cells}).column("x")
    return next(name for name, kind in KINDS.items() if kind.guess(Glance("x", column, HERE)) is not None)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([[1.0], [1.0, 2.0], [1.0, 2.0, 3.0], None], "series"),
        (["[1, 2]", "[3]", "[4, null, 6]"], "series"),
        ([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], "series"),  # steps of two channels, of one length
        (["[[1, 2], [3, null]]", "[[5, 6]]"], "series"),
        ([[1.0, 2.0], [3.0, 4.0], [1.0]], "vector"),
        (["a", "b", "c"] * 9, "category"),
    ],
)
def test_lists_of_many_lengths_are_series(cells, kind) -> None:
    assert guessed(cells) == kind


def test_fixed_size_lists_are_read_where_asked_for() -> None:
    column = pa.array([[1.0, 2.0, 3.0]] * 4, pa.list_(pa.float32(), 3))
    table = read_table(pa.table({"x": column, "y": [0, 1, 0, 1]}))
    schema = Schema.guess(table, target="y", kinds={"x": "series"}).fit(table, np.arange(4))
    assert Rows(table, schema).batch(np.arange(2))["series_0"].shape == (2, 8, 1)


def table(cells: list, **more) -> tuple:
    made = read_table({"x": cells, "y": [float(i) for i in range(len(cells))], **more})
    schema = Schema.guess(made, target="y", kinds={"x": "series"})
    return made, schema.fit(made, np.arange(len(cells)), longest=1.0)


def test_a_batch_of_ragged_series() -> None:
    made, schema = table([[0.0, 2.0, None], [4.0] * 9, None, [NAN], [], [1e400], "no", [[1, 2]]])
    rows = Rows(made, schema)
    batch = rows.batch(np.arange(8))
    x, keep = batch["series_0"], batch["keep"]["series_0"]
    assert x.shape == (8, 16, 1) and x.dtype == torch.float32 and keep.shape == (8, 16)
    assert (
        keep.sum(1).tolist() == [2, 9, 0, 0, 0, 0, 0, 0]
        and batch["present"]["series_0"].tolist() == [True] * 2 + [False] * 6
    )
    mean, std = np.mean([0, 2] + [4] * 9), np.std([0, 2] + [4] * 9)
    np.testing.assert_allclose(x[0, :2, 0], (np.array([0, 2]) - mean) / std, rtol=1e-6)
    assert not x[~keep].any()
    assert rows.bad.by_reason("x") == {
        "not a finite number": 1, "not a series": 1, "a series of 2 channels, not of 1": 1
    }  # fmt: skip
    assert rows.notes["x"] == {"empty series": 2}


def test_channels_and_single_numbers_that_are_missing() -> None:
    made, schema = table([[[1.0, 10.0], [3.0, None]], [[5.0, 30.0], None]])
    x, keep = (Rows(made, schema).batch(np.arange(2))[k] for k in ("series_0", "keep"))
    assert schema.shape("series_0") == {"channels": 2, "steps": 8} and keep["series_0"].sum(1).tolist() == [2, 1]
    assert x[0, 1, 1] == 0 and x[0, 0, 1] == -1 and x[1, 0, 1] == 1  # the mean stands in for what is missing


def test_what_is_no_series_is_said() -> None:
    for cell, said in [
        ("[1, 2", "not a series"),
        ([[1], [2, 3]], "different widths"),
        (["a"], "numbers"),
        ([True], "numbers"),
    ]:
        with pytest.raises(Bad, match=said):
            KINDS["series"].encode(cell, {"channels": 1}, HERE)
    with pytest.raises(Missing):
        KINDS["series"].encode([], {"channels": 1}, HERE)


def test_as_a_target_a_series_is_decoded_and_written() -> None:
    cells = [[1.0, 2.0], None, [3.0, None, 5.0]]
    made = read_table({"x": [1.0, 2.0, 3.0], "y": cells})
    schema = Schema.guess(made, target="y").fit(made, np.arange(3), longest=1.0)
    assert schema.column("y").kind == "series"
    rows = Rows(made, schema, asked=True)
    asked = rows.batch(np.arange(3))["target"]["y"]
    assert asked.shape == (3, 8, 1) and rows.known().tolist() == [True, False, True]
    assert (~asked.isnan()).sum((1, 2)).tolist() == [2, 0, 2]
    written = KINDS["series"].write(asked[2, :3].numpy(), schema.column("y").params)
    assert written[1] is None and written[::2] == pytest.approx([3, 5], rel=1e-6)


def test_tokens_do_not_depend_on_padding_and_forget_what_is_not_real() -> None:
    read = Patches(16, 2)
    x, keep = torch.randn(2, 13, 2), torch.arange(13) < torch.tensor([[13], [5]])
    t = read(x, keep)
    assert t.x.shape == (2, 2, 16) and t.keep.tolist() == [[True, True], [True, False]]
    longer = read(torch.nn.functional.pad(x, (0, 0, 0, 11), value=7.0), torch.nn.functional.pad(keep, (0, 11)))
    torch.testing.assert_close(longer.x[:, :2], t.x)
    assert longer.keep.sum() == 3
    changed = read(torch.where(keep[..., None], x, 9.0), keep)
    torch.testing.assert_close(changed.x, t.x)
    with pytest.raises(ValueError, match=r"expected \(B, T, 2\)"):
        read(torch.randn(2, 13), None)


def test_auto_tells_series_apart(tmp_path) -> None:
    """Two rhythms in series of different lengths, as JSON text in a CSV file, some missing."""
    rng = np.random.default_rng(0)
    lines = ["trace,label"]
    for i in range(240):
        fast, n = i % 2, int(rng.integers(30, 60))
        wave = np.sin(np.arange(n) * (0.9 if fast else 0.5) + rng.uniform(0, 6)) + rng.normal(0, 0.3, n)
        cell = "" if i % 12 == 5 else json.dumps(np.round(wave, 2).tolist())
        lines.append(f'"{cell}",{"fast" if fast else "slow"}')
    path = tmp_path / "waves.csv"
    path.write_text("\n".join(lines))
    how = dict(target="label", folds=1, epochs=12, lr=3e-3, precision="fp32", console=Console(quiet=True))
    run = plait.fit(path, out=tmp_path / "run", system="auto_toy", **how)
    assert run.schema.slots[0].kind == "series" and run.task.name == "classify"
    answers = plait.load(tmp_path / "run").predict(path)
    real = [line.rsplit(",", 1)[1] for line in lines[1:]]
    right = np.array([a == b for a, b in zip(answers["label"].to_pylist(), real)])
    there = np.array([i % 12 != 5 for i in range(240)])
    assert right[there].mean() > 0.9, right[there].mean()
