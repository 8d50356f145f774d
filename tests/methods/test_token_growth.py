"""Growth by pairs of keys and values: nothing has changed when it happens, all of it learns, and a run keeps it."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

import plait
from plait.parts.mixers.pattention import Pattention
from plait.runs.console import Console
from tests.parity.compare import perturb, relative_error
from tests.product.test_changed_runs import weights
from tests.runs.tables import table


def small(seed: int = 0):
    return perturb(plait.create_model("tokenformer_toy", seed=seed, width=48, heads=3, count=40, feed_count=120))


def steps(model) -> list[Pattention]:
    return [m for m in model.modules() if isinstance(m, Pattention)]


def words(rows: int = 3) -> torch.Tensor:
    return torch.randint(4, 64, (rows, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("factors", [(2.0,), (1.75, 3.0), (1.02,)], ids=["once", "twice", "by a few"])
def test_it_says_what_it_said_before(factors):
    model, ids = small(), words()
    before = model(ids)
    for factor in factors:
        plait.apply_method(model, "token_growth", factor=factor)
    assert relative_error(model(ids), before) < 1e-6
    cache = model.prefill({"text": ids[:, :12]})
    assert relative_error(model.step(ids[:, 12:], cache)[0], before[:, 12:]) < 1e-5
    exact, same = small().double(), small().double()
    for factor in factors:
        plait.apply_method(exact, "token_growth", factor=factor)
    assert relative_error(exact(ids), same(ids)) < 1e-13
    for step in steps(model):  # the length that goes with their number is another
        step.length = step.count
    assert relative_error(model(ids), before) > 1e-3


def test_new_keys_learn_at_once_and_new_values_behind_them():
    model, ids = small().train(), words()
    plait.apply_method(model, "token_growth")
    old = [p.count // 2 for p in steps(model)]
    best = torch.optim.SGD(model.parameters(), 0.1)
    for turn in range(2):
        best.zero_grad()
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        for step, n in zip(steps(model), old):
            assert step.keys.weight.grad[n:].abs().sum(1).min() > 0
            assert (step.values.weight.grad[:, n:].abs().sum(0).min() > 0) == (turn > 0)
        best.step()


def test_it_is_undone_and_refuses_what_it_cannot_grow():
    model, ids = small(), words()
    before = model(ids)
    plait.apply_method(model, "token_growth", factor=2)()
    assert torch.equal(model(ids), before) and [p.count for p in steps(model)] == [40, 40, 40, 40, 120] * 2
    for factor in (1.0, 0.5, 1.001):
        with pytest.raises(ValueError, match="factor: got .* to 40 pairs"):
            plait.apply_method(model, "token_growth", factor=factor)
    plait.apply_method(model, "lora", rank=2, targets=("keys",))
    with pytest.raises(ValueError, match="merge the adapters first"):
        plait.apply_method(model, "token_growth")


def test_a_run_grows_is_kept_and_trains_on(tmp_path):
    pq.write_table(table(["text"]), tmp_path / "t.parquet")
    how = dict(task="write", target="said", inputs=["note"], kinds={"note": "text"}, system="tokenformer_toy")
    quiet = dict(precision="fp32", checkpoint_seconds=0.0, console=Console(quiet=True))
    run = plait.fit(tmp_path / "t.parquet", out=tmp_path / "run", epochs=2, batch_size=16, **how, **quiet)
    large = plait.change(run.folder, ["token_growth:factor=1.5"], out=tmp_path / "large")
    recipe = json.loads((large.folder / "config.json").read_text())["recipe"]
    assert recipe["changes"] == [["token_growth", {"factor": 1.5}]]
    again = plait.load(large.folder)
    assert {p.length for p in steps(again.model)} == {24, 48} and {p.count for p in steps(again.model)} == {36, 72}
    here, there = (r.predict(tmp_path / "t.parquet").to_pylist() for r in (run, again))
    assert here == there
    shutil.copytree(large.folder, tmp_path / "on")
    on = plait.fit(out=tmp_path / "on", resume=True, console=Console(quiet=True))
    before, after = weights(large.folder), weights(on.folder)
    keys = [k for k in after if k.endswith("keys.weight")]
    assert len(keys) == 10 and before.keys() == after.keys()
    for key in keys:
        n = 2 * len(after[key]) // 3
        assert not before[key][n:].any() and after[key][n:].abs().sum(1).min() > 0
    told = plait.load(on.folder)
    assert {p.length for p in steps(told.model)} == {24, 48}
