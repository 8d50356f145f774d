"""Small tables are judged by all of their rows, each by a model that never saw it, and what was done is not done
again."""

from __future__ import annotations

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

import plait
from plait.data.kinds.image import ImageKind
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.split import folds_in_time
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from plait.runs import judge as judging
from plait.runs.console import Console
from plait.runs.folds import MOST
from plait.runs.prepare import prepare
from plait.runs.settings import Settings
from tests.runs import tables

N = 48
USUAL = {"system": "auto_toy", "epochs": 1, "precision": "fp32", "target": "y"}


def table(rows: int = N, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return {"x": x.tolist(), "z": rng.normal(size=rows).tolist(), "y": ["abc"[int(v > 0.5) + int(v > -0.5)] for v in x]}


def fit(cells, folder, **options):
    return plait.fit(cells, out=folder, console=Console(quiet=True), **USUAL | options)


def drawn(cells, **options):
    return prepare(cells, Settings(**USUAL | options), Console(quiet=True))


def test_small_tables_are_judged_by_folds_unless_the_user_says_which_rows_judge(tmp_path):
    sizes = {39: 0, 40: 10, 99: 10, 100: 5, MOST - 1: 5, MOST: 0}
    assert {n: len(drawn(table(n)).folds) for n in sizes} == sizes
    assert len(drawn(table(), folds=1).folds) == 0 and len(drawn(table(), folds=3).folds) == 3
    assert len(drawn(table() | {"x": [None] * 20 + table()["x"][20:], "y": [None] * 20 + table()["y"][20:]}).folds) == 0
    split = {"part": ["val" if i % 9 == 0 else "test" if i % 9 == 1 else "train" for i in range(N)]}
    for own in ({"split": "part"}, {"fractions": (0.6, 0.2, 0.2)}):
        data = drawn(table() | split, **own)
        assert not data.folds and len(data.splits["test"])
        with pytest.raises(UsageError, match="--folds judges by all rows"):
            drawn(table() | split, folds=3, **own)
    pairs = {"a": [f"text number {i}" for i in range(N)], "b": [f"other words {i}" for i in range(N)]}
    with pytest.raises(UsageError, match="folds are for .*this run does retrieve"):
        prepare(pairs, Settings(task="retrieve", system="clip_toy", folds=3), Console(quiet=True))
    rare = table() | {"y": ["a"] * (N - 1) + ["b"]}
    assert not drawn(rare).folds  # a fold without the only b could learn nothing


def test_the_last_training_has_all_rows_and_each_fold_all_others():
    data = drawn(table(), folds=3)
    assert not len(data.splits["test"]) and len(data.splits["train"]) + len(data.splits["val"]) == N
    held = np.concatenate([splits["test"] for splits in data.folds.splits])
    assert sorted(held) == list(range(N))
    for splits in data.folds.splits:
        assert sorted(np.concatenate(list(splits.values()))) == list(range(N))
        assert abs(len(splits["test"]) - N / 3) <= 1 and 0 < len(splits["val"]) < len(splits["train"]) / 4
    twice = drawn(table()).folds
    assert not np.array_equal(*twice.sides) and len(twice) == 10


@pytest.mark.parametrize("target", ["y", "z"], ids=["classes", "numbers"])
def test_each_row_is_judged_as_a_fit_without_its_fold_answers_it(target, tmp_path):
    cells = table()
    run = fit(cells, tmp_path / "run", folds=2, target=target)
    ((name, found),) = run.assessments.items()
    assert name == "folds" and sorted(found.index) == list(range(N)) and found.scores[0].n == N
    assert not (tmp_path / "run" / "folds").exists()
    drawn_ = drawn(cells, folds=2, target=target).folds.splits
    for k, splits in enumerate(drawn_):
        part = np.empty(N, object)
        for name, rows in splits.items():
            part[rows] = name
        one = fit(cells | {"part": part.tolist()}, tmp_path / f"one{k}", split="part", target=target)
        theirs = one.assessments["test"]
        mine = np.isin(found.index, splits["test"])
        order = np.argsort(found.index[mine])
        for answer in theirs.answers:
            assert np.array_equal(found.answers[answer][mine][order], theirs.answers[answer])
    if target == "y":
        right = (found.answers["probabilities"].argmax(1) == found.truth["y"]).mean()
        assert found.scores[0].value == right
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert facts["splits"]["folds"]["rows"] == N and "never saw it (2 folds" in facts["splits"]["folds"]["how"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert f"Scores on all {N} rows, in folds" in page and "the intervals cover other rows to learn from" in page


def test_a_fold_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    cells, made = table(), []
    whole = fit(cells, tmp_path / "whole", folds=3)
    real = judging._run

    def counted(table, out, how, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt  # as a kill: nothing is tidied
        made.append((out.name, (out / judging.DONE).exists()))
        return real(table, out, how, *rest)

    monkeypatch.setattr(judging, "_run", counted)
    with pytest.raises(KeyboardInterrupt):
        fit(cells, tmp_path / "run", folds=3)
    (tmp_path / "run" / "folds" / "1" / judging.DONE).unlink()  # killed as it was about to be done
    assert made == [("0", False), ("1", False)]
    seen = (tmp_path / "run" / "folds" / "0" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(judging, "_run", real)
    trained = []
    load = judging.load
    monkeypatch.setattr(judging, "load", lambda folder, **how: (trained.append(folder.name), load(folder, **how))[1])
    monkeypatch.setattr("plait.runs.fit.shutil.rmtree", lambda *_, **__: None)
    again = plait.fit(cells, out=tmp_path / "run", resume=True, console=Console(quiet=True))
    assert trained == ["0"] and (tmp_path / "run" / "folds" / "0" / "model.safetensors").stat().st_mtime_ns == seen
    assert again.assessments["folds"].scores == whole.assessments["folds"].scores
    assert np.array_equal(again.assessments["folds"].answers["probabilities"],
                          whole.assessments["folds"].answers["probabilities"])  # fmt: skip


def test_what_the_folds_cost_is_said_before(tmp_path):
    one, five = (fit(table(), tmp_path / "r", dry_run=True, folds=k) for k in (1, 5))
    assert (one["folds"], five["folds"]) == (0, 5) and one["cost"]["folds_seconds"] == 0
    own = five["cost"]["seconds"] - five["cost"]["folds_seconds"]
    assert five["cost"]["folds_seconds"] == pytest.approx(4 * own)
    half = fit(table(), tmp_path / "r", dry_run=True, folds=5, minutes=1e-6)
    assert half["plan"]["minutes"] == 5e-7 and half["cost"]["seconds"] == pytest.approx(6e-5)
    assert not (tmp_path / "r").exists()


def test_folds_know_other_classes(tmp_path):
    """Of three rows of a class some folds learn from one, or two, and all others from none of d."""
    cells = table(60)
    cells["y"] = ["d" if i in (3, 33) else v for i, v in enumerate(cells["y"])]
    found = fit(cells, tmp_path / "run", folds=2).assessments["folds"]
    p, classes = found.answers["probabilities"], plait.load(tmp_path / "run").task.classes
    assert p.shape == (60, 4) and np.allclose(p.sum(1), 1)
    truth = [cells["y"][i] for i in found.index]
    assert [classes[i] for i in found.truth["y"]] == truth


def test_media_are_decoded_once_for_all_folds(monkeypatch):
    calls, encode = [], ImageKind.encode_some

    def counted(kind, cells, *how):
        calls.append(len(cells))
        return encode(kind, cells, *how)

    monkeypatch.setattr(ImageKind, "encode_some", counted)
    options = {"target": "label", "inputs": ["photo"], "system": "auto_toy", "image_size": 32, "folds": 2}
    source = tables.table(("image",), 40)
    cells = source.column("photo").to_pylist()
    cells[7] = cells[7][:30]
    source = source.set_column(source.column_names.index("photo"), "photo", [cells])
    data = prepare(source, Settings(**options), Console(quiet=True))
    assert sum(calls) == 40
    again = Rows(data.table, data.schema, asked=True, share=data.rows).scan()
    assert sum(calls) == 40 and again.bad.by_reason("photo") == data.rows.bad.by_reason("photo") != {}
    assert again.bad.cells == data.rows.bad.cells
    for name, there in data.rows.presence().items():
        assert np.array_equal(again.presence()[name], there) and (name != "image_0" or not there[7])
    one, other = (rows.batch(np.arange(40))["image_0"] for rows in (again, data.rows))
    assert np.array_equal(one, other)
    smaller = copy.deepcopy(data.schema)
    smaller.column("photo").params["size"] = [16, 16]
    assert Rows(data.table, smaller, asked=True, share=data.rows).batch(np.arange(2))["image_0"].shape[-1] == 16
    assert sum(calls) == 80


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 80), st.integers(2, 6), st.integers(1, 40), st.integers(0, 9))
def test_folds_in_time_go_one_way(n, folds, moments, seed):
    when = np.random.default_rng(seed).integers(0, moments, n).astype(float)
    source = read_table({"x": np.arange(n) * 1.5, "when": when})
    schema = Schema.guess(source, inputs=["x"], kinds={"when": "number"})
    if len(set(when)) <= folds:
        with pytest.raises(DataError, match=f"expected at least {folds + 1}"):
            folds_in_time(source, schema, "when", folds)
        return
    side = folds_in_time(source, schema, "when", folds)
    assert set(side) == set(range(-1, folds))
    for fold in range(folds):
        assert when[side < fold].max() < when[side == fold].min()
    if moments == 40 and n >= 60:
        assert np.bincount(side + 1).max() < 3 * n / (folds + 1)


def test_each_fold_is_later_than_all_that_it_learnt_from(tmp_path):
    cells = table(60) | {"day": np.random.default_rng(0).permutation(60)}
    data = drawn(cells, folds=3, time="day")
    assert [len(s["test"]) for s in data.folds.splits] == [15, 15, 15] and not len(data.splits["test"])
    for splits in data.folds.splits:
        train, val, test = (cells["day"][splits[name]] for name in ("train", "val", "test"))
        assert train.max() < val.min() <= val.max() < test.min()
    assert not drawn(cells, time="day").folds  # time may leave few rows: only where it is asked for
    found = fit(cells, tmp_path / "run", folds=3, time="day").assessments["folds"]
    assert len(found.index) == 45 and found.left_out == {"row of the earliest, which are learnt from alone": 15}


def test_a_threshold_of_each_fold_and_weights_of_rows_count_in_the_scores(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=120)
    cells = {"x": x, "z": rng.normal(size=120), "y": ["fraud" if v + e > 1.2 else "fine"
             for v, e in zip(x, rng.normal(size=120))], "w": rng.integers(1, 4, 120)}  # fmt: skip
    how = {"metric": "f1", "positive": "fraud", "sample_weight": "w", "folds": 2, "lr": 1e-4}
    found = fit(cells, tmp_path / "run", **how).assessments["folds"]
    said, p = found.answers["said"], found.answers["probabilities"]
    classes = plait.load(tmp_path / "run").task.classes
    truth = np.array([cells["y"][i] for i in found.index])
    answer = np.array(classes)[said]
    assert (said != p.argmax(1)).any()
    assert found.scores[0].name == "F1"
    assert found.scores[0].value == pytest.approx(
        f1_score(truth, answer, pos_label="fraud", sample_weight=cells["w"][found.index])
    )
    accuracy = {s.name: s.value for s in found.scores}["accuracy"]
    assert accuracy == pytest.approx(np.average(truth == answer, weights=cells["w"][found.index]))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to one process")
def test_a_run_that_is_stopped_in_a_fold_goes_on_there(tmp_path, monkeypatch):
    cells, how = table(), {"folds": 3, "epochs": 2, "batch_size": 8, "checkpoint_seconds": 0.0}
    whole, steps = fit(cells, tmp_path / "whole", **how), []
    update = judging.Part.update

    def impatient(self, info):
        steps.append((self.name, info["step"]))
        if steps[-1] == ("fold 2/3", 3):
            os.kill(os.getpid(), signal.SIGINT)
        update(self, info)

    monkeypatch.setattr(judging.Part, "update", impatient)
    stopped = fit(cells, tmp_path / "run", **how)
    assert stopped.stopped == "interrupted" and steps[-1][0] == "fold 2/3"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    steps.clear()
    again = plait.fit(cells, out=tmp_path / "run", resume=True, console=Console(quiet=True))
    assert steps[0][0] == "fold 2/3" and steps[0][1] > 3 and steps[-1][0] == "fold 3/3"
    assert again.assessments["folds"].scores == whole.assessments["folds"].scores
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name])
