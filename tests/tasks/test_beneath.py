"""The ladder beneath a network: what it reads, that its rungs are out of fold, that files are what was learnt."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import TargetEncoder

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError
from plait.tasks.beneath import Ladder, kernel, learn, seen
from plait.tasks.beneath.asked import Classes, Labels, Number
from plait.tasks.beneath.design import Design, one_hot, parts
from plait.tasks.beneath.folds import taken
from plait.tasks.beneath.ladder import Scale
from plait.tasks.beneath.means import encoded
from plait.tasks.beneath.trees import grow, kept, scattered

WORDS = "red green blue old new fast slow warm cold quiet".split()


def table(n: int = 240, seed: int = 0, hidden: bool = False) -> pa.Table:
    """Words, a city and two numbers, of which the answer is made; each is missing in some rows."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(n)]
    city = rng.choice(["Oslo", "Rome", "Lima"], n)
    a, b = rng.normal(size=n), rng.normal(size=n)
    score = np.asarray([("red" in t) - ("slow" in t) for t in texts]) + (city == "Rome") + np.sign(a) * (b > 0)
    gone = rng.random(n) < 0.1
    return pa.table({
        "text": texts, "city": city, "a": pa.array(a, mask=gone), "b": b,
        "y": np.where(score > 0.5, "high", "low"), "z": np.exp(score),
    })  # fmt: skip


def rows_of(data: pa.Table, target: str, kinds: dict[str, str] | None = None) -> tuple[Rows, Schema]:
    read = read_table(data)
    schema = Schema.guess(read, target=target, inputs=["text", "city", "a", "b"], kinds=kinds or {"text": "text"})
    schema.ask("category" if target == "y" else "number")
    schema.fit(read, np.arange(len(read)))
    return Rows(read, schema, asked=True).scan(), schema


def everything(rows: Rows) -> tuple[dict, dict]:
    batch = rows.batch(np.arange(len(rows)))
    return batch, parts(batch, rows.schema)


@pytest.fixture(scope="module")
def climbed():
    rows, schema = rows_of(table(), "y")
    batch, given = everything(rows)
    y = batch["target"]["y"].numpy()
    ladder = learn.climb(partial(taken, given), y, Classes(2), schema, 0)
    return rows, batch, given, y, ladder


def test_what_simple_models_are_given_is_what_the_table_says():
    rows, _ = rows_of(table(), "y")
    batch, given = everything(rows)
    assert given["text_0"] == table().column("text").to_pylist()
    assert np.array_equal(np.isnan(given["number"][:, 0]), table().column("a").is_null().to_numpy(zero_copy_only=False))
    assert len(np.unique(given["category"])) == 3
    batch["present"] = {slot: torch.zeros_like(p) for slot, p in batch["present"].items()}
    none = parts(batch, rows.schema)
    assert set(none["text_0"]) == {""}
    assert np.isnan(none["number"]).all()
    assert not none["category"].any()


def test_a_linear_rung_is_what_scikit_learn_solves(climbed):
    _, _, given, y, ladder = climbed
    x = ladder.design.linear(given, ladder.bins, ladder.terms)
    strength = ladder.how["strength"]
    w, b = Classes(2).solve(x.toarray(), y, strength, None)
    peer = LogisticRegression(C=strength, max_iter=2000, tol=1e-8).fit(x.toarray(), y)
    ours = Classes(2).normal(x @ w.T + b)
    assert np.abs(np.exp(ours) - peer.predict_proba(x.toarray())).max() < 5e-3
    w, b = Number().solve(x.toarray(), y * 1.0, 10.0, None)
    assert np.allclose(x @ w[0] + b, Ridge(alpha=0.1).fit(x.toarray(), y).predict(x.toarray()), atol=1e-6)


def test_words_numbers_and_categories_all_tell(climbed):
    """Each of the four columns that the answer is made of is used: without it, answers change and get worse."""
    rows, batch, _, y, ladder = climbed
    whole = Classes(2).losses(ladder(batch), y).mean()
    assert whole < 0.4
    for slot in batch["present"]:
        without = {**batch, "present": batch["present"] | {slot: torch.zeros(len(y), dtype=torch.bool)}}
        assert Classes(2).losses(ladder(without), y).mean() > whole + 0.02, slot


def test_rungs_are_weighed_by_rows_that_they_have_not_seen():
    """Of noise nothing can be learnt: out of fold a linear model with more columns than rows is no better than the
    prior, and says so."""
    rng = np.random.default_rng(0)
    data = table()
    data = data.set_column(4, "y", pa.array(rng.choice(["high", "low"], len(data))))
    rows, schema = rows_of(data, "y")
    batch, given = everything(rows)
    y = batch["target"]["y"].numpy()
    ladder = learn.climb(partial(taken, given), y, Classes(2), schema, 0)
    assert ladder.told["linear"] > 0.66
    fresh = Rows(read_table(table(seed=1)), schema, asked=True).scan()
    assert Classes(2).losses(ladder(everything(fresh)[0]), rng.integers(0, 2, 240)).mean() < 0.8


def test_a_file_holds_all_of_it(climbed, tmp_path):
    _, batch, _, _, ladder = climbed
    ladder.network = (0.9, 0.3)
    ladder.save(tmp_path / "ladder.safetensors")
    again = Ladder.read(tmp_path / "ladder.safetensors", ladder.schema)
    assert np.array_equal(again(batch), ladder(batch))
    assert again.network == (0.9, 0.3)
    assert again.told == ladder.told
    ladder.network = (1.0, 0.0)


def test_a_file_holds_every_rung(climbed, tmp_path):
    """And a file of format 1, which had no kernels and forests, is still read."""
    _, batch, given, y, ladder = climbed
    every = learn.climb(partial(taken, given), y, Classes(2), ladder.schema, 0)
    assert set(every.told) == {"linear", "kernel", "trees", "forest", "both"}
    path, alone = tmp_path / "ladder.safetensors", {}
    every.rungs = dict.fromkeys(("linear", "kernel", "trees", "forest"), 0.4)
    learn.again(every, partial(taken, given), y, 0)
    every.save(path)
    again = Ladder.read(path, ladder.schema)
    for name in every.rungs:
        alone[name] = again.rung(name, given)
        assert np.array_equal(alone[name], every.rung(name, given)), name
        assert Classes(2).losses(alone[name], y).mean() < 0.5, name
    assert np.array_equal(again(batch), every(batch))

    every.rungs = {"linear": 0.7, "trees": 0.4}
    every.save(path)
    with safe_open(path, "numpy") as file:
        told, arrays = json.loads(file.metadata()["ladder"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    assert not any(k.startswith(("kernel", "curve", "forest")) for k in arrays)
    save_file(arrays, path, {"ladder": json.dumps(told | {"format": 1})})
    old = Ladder.read(path, ladder.schema)
    assert np.array_equal(old.rung("trees", given), alone["trees"])
    assert np.array_equal(old(batch), every(batch))


def test_labels_have_a_kernel_and_no_forest(climbed):
    _, batch, given, y, ladder = climbed
    labels = np.stack([y, 1 - y], 1)
    labels[::3, 1] = -100
    found = learn.climb(partial(taken, given), labels, Labels(2), ladder.schema, 0)
    assert {"kernel", "trees"} <= set(found.told)
    assert "forest" not in found.told
    found.rungs = {"kernel": 1.0}
    learn.again(found, partial(taken, given), labels, 0)
    prior = np.repeat(found.prior[None], len(y), 0)
    assert Labels(2).losses(found(batch), labels).mean() < Labels(2).losses(prior, labels).mean() - 0.1


def test_many_rows_have_neither_kernel_nor_forest(climbed, monkeypatch):
    _, _, given, y, ladder = climbed
    monkeypatch.setattr(learn, "SMALL", len(y) - 1)
    many = learn.climb(partial(taken, given), y, Classes(2), ladder.schema, 0)
    assert set(many.told) <= {"linear", "trees", "both"}


def test_texts_are_read_once_for_all_that_is_tried_of_them(climbed, monkeypatch):
    _, _, given, y, ladder = climbed
    read = []
    reader = TfidfVectorizer.transform
    monkeypatch.setattr(TfidfVectorizer, "transform", lambda one, texts: read.append(one) or reader(one, texts))
    learner = learn.Learner(ladder, given, y, None, 0)
    before = vars(ladder) | {"how": dict(ladder.how), "scales": dict(ladder.scales)}
    learner.linear()
    vars(ladder).update(before)
    assert len(read) == 3  # words, pairs, characters


def test_a_damaged_file_is_named(climbed, tmp_path):
    *_, ladder = climbed
    path = tmp_path / "ladder.safetensors"
    ladder.save(path)
    with safe_open(path, "numpy") as file:
        told, arrays = json.loads(file.metadata()["ladder"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    for broken in ({k: v for k, v in told.items() if k != "design"}, told | {"asked": "poems"}, told | {"format": 99}):
        save_file(arrays, path, {"ladder": json.dumps(broken)})
        with pytest.raises(DataError, match="ladder.safetensors"):
            Ladder.read(path, ladder.schema)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="damaged"):
        Ladder.read(path, ladder.schema)


def test_the_network_is_heard_only_where_it_adds_more_than_noise(climbed):
    _, batch, _, y, ladder = climbed
    rng = np.random.default_rng(0)
    beneath = Classes(2).normal(rng.normal(size=(200, 2)))
    real = rng.integers(0, 2, 200)
    ladder.join(beneath, rng.normal(size=(200, 2)), real, 2.0)
    assert ladder.network == (1.0, 0.0)
    assert np.array_equal(ladder.whole(beneath, rng.normal(size=(200, 2))), beneath)
    knows = np.eye(2)[real] * 3 + rng.normal(size=(200, 2))
    assert ladder.join(beneath, knows, real, 2.0) > 5
    assert ladder.network[1] > 0.3
    assert Classes(2).losses(ladder.whole(beneath, knows), real).mean() < 0.2
    ladder.network = (1.0, 0.0)


def test_numbers_with_a_long_tail_are_learnt_by_their_logarithm_and_never_fall_below_nothing():
    rows, schema = rows_of(table(400), "z")
    batch, given = everything(rows)
    params = schema.column("z").params
    y, unit = batch["target"]["z"].numpy(), (params["mean"], params["std"])
    ladder = learn.climb(partial(taken, given), y, Number(), schema, 0, unit=unit)
    assert ladder.scales["linear"].name == "logarithm"
    fresh = Rows(read_table(table(1000, seed=1)), schema, asked=True).scan()
    batch = fresh.batch(np.arange(1000))
    y, answers = batch["target"]["z"].numpy(), ladder(batch)[:, 0]
    assert (answers * unit[1] + unit[0]).min() > -1e-6
    assert ((answers - y) ** 2).mean() < 0.35 * y.var()
    bias = abs(answers.mean() - y.mean())
    for name, scale in ladder.scales.items():
        ladder.scales[name] = Scale(scale.name, scale.shift, 1.0)
    assert bias < abs(ladder(batch)[:, 0].mean() - y.mean()) - 0.05  # medians are lower than means


@pytest.mark.parametrize("classes", [0, 2, 4])
def test_trees_are_those_that_were_grown(classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    x[rng.random(x.shape) < 0.15] = np.nan
    y = np.nan_to_num(x[:, 0]) + np.nan_to_num(x[:, 1]) * 2
    y = y if classes == 0 else np.digitize(y, np.quantile(y, np.arange(1, classes) / classes))
    model = grow(x, y, None, classes=classes, rounds=12, rate=0.2, seed=0)
    peer = model.predict(x)[:, None] if classes == 0 else model._raw_predict(x)
    assert np.allclose(kept(model, 12)(x), peer, atol=1e-9)
    assert not np.allclose(kept(model, 11)(x), peer, atol=1e-3)
    staged = kept(model, 12).staged(x, 3)
    for i in range(3):
        assert np.allclose(staged[i], kept(model, 4 * (i + 1))(x), atol=1e-12)


@pytest.mark.parametrize("classes", [0, 2, 4, 12])
def test_a_forest_is_the_one_that_was_grown(classes):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = np.nan_to_num(x[:, 0]) + np.nan_to_num(x[:, 1]) ** 2
    y = y if classes == 0 else np.digitize(y, np.quantile(y, np.arange(1, classes) / classes))
    weight = rng.random(200)
    how = dict(n_estimators=100, min_samples_leaf=3, max_features=0.5, random_state=0)
    fresh = rng.normal(size=(50, 4)).astype(np.float32)
    fresh[:5] = np.nan
    found = scattered(x, y, weight, classes=classes, leaf=3, seed=0)(fresh)
    if classes != 12:  # of few classes: numbers that are 0 and 1
        real = ExtraTreesRegressor(**how).fit(x, np.eye(classes)[y] if classes == 4 else y, weight).predict(fresh)
        real = np.stack([1 - real, real], 1) if classes == 2 else real.reshape(50, -1)
        assert np.allclose(found, real, atol=1e-12)
    if classes:
        real, other = (
            ExtraTreesClassifier(**how | {"random_state": seed}).fit(x, y, weight).predict_proba(fresh)
            for seed in (0, 1)
        )
        luck = np.abs(real - other).mean()
        assert np.abs(found - real).mean() < (1e-12 if classes == 12 else luck)
    assert not np.allclose(scattered(x, y, None, classes=classes, leaf=3, seed=0)(fresh), real, atol=1e-3)


def test_a_kernel_has_features_whose_products_are_the_kernel():
    rng = np.random.default_rng(0)
    x, fresh = rng.normal(size=(100, 3)), rng.normal(size=(20, 3))
    found = kernel.fit(x, 1.0)
    assert np.allclose(found(x) @ found(x).T, rbf_kernel(x, gamma=1 / float(found.width[0])), atol=1e-6)
    assert np.isclose(found.width[0], ((x[:, None] - x[None]) ** 2).sum(2).mean())
    assert np.array_equal(found(np.repeat(fresh, 300, 0))[::300], found(fresh))
    many = kernel.fit(rng.normal(size=(400, 3)), 1.0)  # the directions that say most are kept
    assert many(fresh).shape == (20, kernel.FEATURES)
    own = (many(fresh) ** 2).sum(1)  # a row is like itself as 1 to 1
    assert (own < 1 + 1e-9).all()
    assert own.mean() > 0.95


@pytest.mark.parametrize("levels", [2, 3])
def test_means_by_category_are_the_encoders(levels):
    rng = np.random.default_rng(0)
    ids, y = rng.integers(0, 30, (400, 2)), rng.integers(0, levels, 400)
    x, tables = encoded(np.zeros((400, 0), np.float32), ids, y, Classes(levels), 0)
    kind = "binary" if levels == 2 else "multiclass"
    peer = TargetEncoder(target_type=kind).fit(ids, y).transform(ids)
    width = 1 if levels == 2 else levels
    for i in range(2):
        assert np.allclose(tables[i][ids[:, i], :width], peer[:, i * width : (i + 1) * width], atol=1e-6)
        assert np.array_equal(tables[i][:-1, width], np.bincount(ids[:, i]))
    assert not np.allclose(x[:, 0], tables[0][ids[:, 0], 0], atol=1e-3)  # of other folds


def test_labels_that_are_unknown_do_not_count():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = (x > 0).astype(np.int64)
    y[:, 2] = 1  # always there
    shown = y.copy()
    shown[100:, 0] = -100
    w, b = Labels(3).solve(x, shown, 1.0, None)
    other = shown.copy()
    other[100:, 0] = -100
    x2 = x.copy()
    x2[100:] += 5.0
    assert np.allclose(Labels(3).solve(x2, other, 1.0, None)[0][0], w[0])
    assert not w[2].any()
    assert b[2] > 4


def test_one_hot_says_nothing_of_what_is_missing_or_new():
    found = one_hot(np.asarray([[0, 2], [1, 9]]), [3, 3]).toarray()
    assert found.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]


def test_pictures_are_seen_by_their_brightness_colours_and_edges():
    torch.manual_seed(0)
    plain = torch.full((1, 3, 32, 32), 0.5)
    upright, flat = plain.clone(), plain.clone()
    upright[..., 16:], flat[..., 16:, :] = 1.0, 1.0
    a, b, c = (seen.pictures(x)[0] for x in (plain, upright, flat))
    edges = slice(144 + 48, None)
    assert a[edges].abs().max() == 0
    assert (b[edges].reshape(9, 36).sum(1).argmax(), c[edges].reshape(9, 36).sum(1).argmax()) in [(0, 4), (0, 5)]
    red = plain.clone()
    red[:, 0] = 1.0
    assert (seen.pictures(red)[0][144 : 144 + 16] > 0.2).all()  # more red than the mean of the colours


def test_too_few_rows_have_no_ladder():
    rows, schema = rows_of(table(20), "y")
    batch, given = everything(rows)
    assert learn.climb(partial(taken, given), batch["target"]["y"].numpy(), Classes(2), schema, 0) is None


def test_a_text_of_no_words_and_a_constant_column_are_nothing():
    rows, schema = rows_of(table(), "y")
    _, given = everything(rows)
    given["text_0"] = [""] * 240
    given["number"][:] = 1.0
    design = Design.fit(given, schema, 0)
    assert "text_0" not in design.told
    assert design.told["number"] == {"kind": "number", "gaps": [], "bins": []}


def test_sounds_are_heard_by_band_and_by_section_however_long_they_are():
    rate, t = 8000, torch.arange(8000) / 8000
    rising = torch.sin(2 * torch.pi * (200 * t + 1200 * t**2))
    keep = torch.ones(2, 8000, dtype=torch.bool)
    keep[1, 4000:] = False
    both = torch.stack([rising, torch.cat([rising[::2], torch.full((4000,), 9.0)])])  # what is not kept is not heard
    found = seen.sounds(both, keep, rate)[:, : seen.BANDS * seen.SECTIONS].reshape(2, seen.BANDS, seen.SECTIONS)
    loudest = found.argmax(1)
    assert (loudest[0].diff() >= 0).all()
    assert loudest[0, -1] > loudest[0, 0] + 5
    assert (loudest[1] > loudest[0]).all()  # twice as fast is an octave higher
    short = seen.sounds(both[:1, :100], keep[:1, :100], rate)
    assert short.isfinite().all()
    assert seen.sounds(both, keep.logical_and(torch.zeros(())), rate).isfinite().all()


def test_series_are_read_by_what_is_there():
    x = torch.tensor([[[9.0], [1.0], [2.0], [6.0], [9.0]]])
    keep = torch.tensor([[False, True, True, True, False]])
    assert torch.allclose(seen.series(x, keep), torch.tensor([[3.0, (14 / 3) ** 0.5, 1.0, 6.0, 1.0, 6.0]]))
    assert not seen.series(x, keep & False).any()


def test_labels_never_learnt_have_a_column_that_nothing_is_learnt_of():
    """Of a column of lists the last column is of labels that no training row has."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    real = (x[:, :2] > 0).astype(np.int64)
    asked, more = Labels(2), np.concatenate([real, rng.integers(0, 2, (60, 1))], 1)
    for one, other in zip(asked.solve(x, real, 1.0, None), asked.solve(x, more, 1.0, None)):
        assert np.array_equal(one, other)
    answers = rng.normal(size=(60, 2))
    assert np.array_equal(asked.losses(answers, real), asked.losses(answers, more))
    assert np.array_equal(asked.prior(real), asked.prior(more))
    assert np.array_equal(asked.mix([answers, -answers], real), asked.mix([answers, -answers], more))


def test_trees_grow_beside_a_feature_without_any_number():
    x = np.random.default_rng(0).normal(size=(80, 2))
    x[:, 1] = np.nan
    model = grow(x, (x[:, 0] > 0).astype(float), None, classes=0, rounds=20, rate=0.3, seed=0)
    assert np.abs(model.predict(x) - (x[:, 0] > 0)).mean() < 0.1
