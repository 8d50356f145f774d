"""Simple models beneath several numbers, and beneath quantiles."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import QuantileRegressor
from sklearn.metrics import mean_pinball_loss

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError
from plait.tasks.beneath import Ladder, Several, learn, several
from plait.tasks.beneath.asked import Number
from plait.tasks.beneath.design import parts
from plait.tasks.beneath.folds import taken
from plait.tasks.beneath.quantiles import Quantiles, quantile
from plait.tasks.beneath.trees import grow, kept

LEVELS = (0.1, 0.5, 0.9)


def table(n: int, seed: int = 0) -> dict:
    """a and b are linear, c is as uncertain as x is large, few is known of few rows."""
    rng = np.random.default_rng(seed)
    x, z = rng.uniform(0, 2, n), rng.normal(size=n)
    noise = rng.normal(size=(3, n))
    a, b = 100 + 10 * z + noise[0], x - 2 * z + 0.5 * noise[1]
    return {"x": x, "z": z, "a": a, "b": pa.array(b, mask=np.arange(n) % 4 == 0),
            "c": 5 * x + (0.2 + 3 * x) * noise[2], "few": pa.array(a + b, mask=np.arange(n) > 9)}  # fmt: skip


def read(n: int, target: list[str], seed: int = 0) -> tuple[Rows, Schema, dict, np.ndarray, dict]:
    """Rows, their schema, a batch of all, what is asked (n, K), and what simple models are given."""
    source = read_table(pa.table(table(n, seed)))
    schema = Schema.guess(source, target=target, inputs=["x", "z"])
    schema.ask("number")
    schema.fit(source, np.arange(n))
    rows = Rows(source, schema, asked=True).scan()
    batch = rows.batch(np.arange(n))
    return rows, schema, batch, np.stack([batch["target"][t].numpy() for t in target], 1), parts(batch, schema)


@pytest.fixture(scope="module")
def climbed():
    names = ["a", "b", "few"]
    _, schema, batch, y, given = read(300, names)
    units = [(schema.column(t).params["mean"], schema.column(t).params["std"]) for t in names]
    found = several.climb(partial(taken, given), y, [(Number(), unit) for unit in units], names, schema, 0, None)
    return batch, y, given, found, schema


def test_each_number_has_a_ladder_of_its_own_by_the_rows_that_have_it(climbed) -> None:
    batch, y, given, found, schema = climbed
    assert isinstance(found, Several) and found.ladders[2] is None  # ten rows are too few
    answers = found(batch)
    known = np.isfinite(y[:, 1])
    assert np.mean((answers[:, 0] - y[:, 0]) ** 2) < 0.02 and np.mean((answers[known, 1] - y[known, 1]) ** 2) < 0.1
    alone = learn.climb(partial(taken, given), y[:, 1], Number(), schema, 0, unit=found.ladders[1].unit)
    np.testing.assert_allclose(alone(batch)[:, 0], answers[:, 1], atol=1e-6)


def test_the_network_is_heard_of_the_numbers_that_it_knows_better(climbed) -> None:
    batch, y, _, found, _ = climbed
    rng, beneath = np.random.default_rng(0), found(batch)
    network = np.stack([rng.normal(size=300), np.nan_to_num(y[:, 1]) + 0.01 * rng.normal(size=300), np.arange(300)], 1)
    before = found.network
    assert found.join(beneath, network, y, 2.0) > 5
    assert found.network[0] == (1.0, 0.0) and found.network[1][1] > 0.5 and found.heard
    whole = found.whole(beneath, network)
    np.testing.assert_array_equal(whole[:, 0], beneath[:, 0])
    np.testing.assert_array_equal(whole[:, 2], network[:, 2])  # nothing is beneath it
    known = np.isfinite(y[:, 1])
    assert np.mean((whole[known, 1] - y[known, 1]) ** 2) < 0.2 * np.mean((beneath[known, 1] - y[known, 1]) ** 2)
    found.network = before
    assert found.network == before


def test_a_file_holds_all_ladders(climbed, tmp_path) -> None:
    batch, _, _, found, schema = climbed
    path = tmp_path / "ladder.safetensors"
    found.ladders[1].network = (0.8, 0.4)
    found.save(path)
    again = several.read(path, schema)
    assert isinstance(again, Several) and again.names == found.names and again.network == found.network
    np.testing.assert_array_equal(again(batch), found(batch))
    found.ladders[1].network = (1.0, 0.0)
    with safe_open(path, "numpy") as file:
        told, arrays = json.loads(file.metadata()["ladder"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    for broken in (told | {"ladders": [{}]}, told | {"format": 99}):
        save_file(arrays, path, {"ladder": json.dumps(broken)})
        with pytest.raises(DataError, match="ladder.safetensors"):
            several.read(path, schema)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged"):
        several.read(path, schema)


def test_answers_out_of_fold_are_of_models_that_have_not_seen_the_row(climbed) -> None:
    """A number that nothing tells of: models answer rows that they have seen better than rows that they have not."""
    _, _, given, _, schema = climbed
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    y[7] = np.nan
    wide = given | {"number": rng.normal(size=(300, 60))}
    ladder = learn.climb(partial(taken, wide), y, Number(), schema, 0)
    ladder.rungs = {"linear": 1.0}
    ladder.how["strength"] = 1.0
    held = learn.out_of_fold(ladder, partial(taken, wide), y, 0)[:, 0]
    learn.again(ladder, partial(taken, wide), y, 0)
    seen, known = ladder.rung("linear", wide)[:, 0], np.isfinite(y)
    assert np.isnan(held[7]) and np.isfinite(held[known]).all()
    assert np.corrcoef(seen[known], y[known])[0, 1] > 0.35 > 0.15 > np.corrcoef(held[known], y[known])[0, 1]
    ladder.how["single"] = 1.0
    assert learn.out_of_fold(ladder, partial(taken, wide), y, 0) is None


def test_a_linear_quantile_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    y = x @ [1, -0.5, 0.3, 0] + (1 + 0.5 * x[:, 0]) * rng.standard_t(4, size=600) / 2
    w, b = Quantiles(LEVELS).solve(x, y, 1e6, None)
    for k, level in enumerate(LEVELS):
        peer = mean_pinball_loss(y, QuantileRegressor(quantile=level, alpha=0).fit(x, y).predict(x), alpha=level)
        assert mean_pinball_loss(y, x @ w[k] + b[k], alpha=level) < 1.003 * peer
        assert np.mean(y <= x @ w[k] + b[k]) == pytest.approx(level, abs=0.005)
    twice = np.repeat(np.arange(600), 1 + np.arange(600) % 2)
    again = Quantiles(LEVELS).solve(x[twice], y[twice], 1e6, None)
    weighed = Quantiles(LEVELS).solve(x, y, 1e6, 1.0 + np.arange(600) % 2)
    np.testing.assert_allclose(weighed[0], again[0], atol=0.02)
    assert quantile(np.arange(10.0), 0.3) == 2 and quantile(np.arange(3.0), 0.5, np.array([0.1, 0.2, 0.7])) == 2


def test_trees_of_a_quantile_are_those_that_were_grown() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3))
    y = x[:, 0] + np.exp(x[:, 1]) * rng.normal(size=400)
    model = grow(x, y, None, classes=0, rounds=30, rate=0.2, seed=0, level=0.9)
    assert isinstance(model, HistGradientBoostingRegressor) and model.quantile == 0.9
    np.testing.assert_allclose(kept(model, 30)(x)[:, 0], model.predict(x), atol=1e-9)
    assert np.mean(y <= model.predict(x)) == pytest.approx(0.9, abs=0.03)


def test_quantiles_that_are_mixed_follow_the_better_and_never_cross() -> None:
    rng = np.random.default_rng(0)
    asked, y = Quantiles(LEVELS), rng.normal(size=500)
    right, wrong = np.tile([-1.28, 0, 1.28], (500, 1)), np.sort(rng.normal(size=(500, 3)), 1)
    shares = asked.mix([wrong, right], y)
    assert shares.sum() == pytest.approx(1) and shares[1] > 0.95
    assert (np.diff(asked.mixed(np.array([0.4, 0.6]), [wrong, right]), axis=1) >= 0).all()
    want = np.mean([mean_pinball_loss(y, wrong[:, i], alpha=level) for i, level in enumerate(LEVELS)])
    assert asked.losses(wrong, y).mean() == pytest.approx(want)
    np.testing.assert_allclose(asked.normal(right[:, ::-1]), right)


def test_a_ladder_of_quantiles_follows_the_spread_and_is_in_its_file(tmp_path) -> None:
    _, schema, batch, y, given = read(500, ["c"])
    params = schema.column("c").params
    unit = params["mean"], params["std"]
    ladder = learn.climb(partial(taken, given), y[:, 0], Quantiles(LEVELS), schema, 0, unit=unit)
    assert "linear" in ladder.rungs
    answers, x = ladder(batch), np.asarray(table(500)["x"])
    assert (np.diff(answers, axis=1) >= 0).all()
    wide = answers[:, 2] - answers[:, 0]
    assert wide[x > 1.5].mean() > 2 * wide[x < 0.5].mean()
    ladder.save(tmp_path / "l")
    again = several.read(tmp_path / "l", schema)
    assert isinstance(again, Ladder)
    np.testing.assert_array_equal(again(batch), answers)
    nothing = {**batch, "present": {slot: p & False for slot, p in batch["present"].items()}}
    np.testing.assert_allclose(ladder(nothing), np.tile(ladder.prior, (500, 1)))
    np.testing.assert_allclose(ladder.prior, np.quantile(y[:, 0], LEVELS), atol=0.03)


def test_trees_stand_beneath_quantiles_where_lines_do_not_follow() -> None:
    rows, schema, _, _, given = read(500, ["c"])
    x, z = given["number"].T
    y = np.sign(x) * np.sign(z) + (0.1 + (z > 0)) * 0.3 * np.random.default_rng(0).normal(size=len(rows))
    ladder = learn.climb(partial(taken, given), y, Quantiles(LEVELS), schema, 0)
    assert "trees" in ladder.rungs and ladder.told["trees"] < 0.7 * ladder.told["linear"]
    assert len(ladder.trees) == len(LEVELS)
