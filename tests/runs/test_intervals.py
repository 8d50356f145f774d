"""Probabilities that mean what they say, and intervals that hold the truth as often as they are asked to."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.cli import main
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import UsageError
from plait.evaluate.chosen import CALIBRATION
from plait.runs.assemble import objective, recipe
from plait.runs.console import Console
from plait.runs.fit import calibrate
from plait.runs.job import TableJob
from plait.runs.prepare import prepare
from plait.runs.settings import Settings
from plait.tasks.conformal import MOST, Misses
from plait.tasks.deciding import best_doubt, best_temperature, cooled, doubted
from plait.tasks.registry import TASKS

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(n: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    odds = np.stack([x[:, 0] + x[:, 1] * x[:, 2], x[:, 3] - x[:, 0], 0.5 * x[:, 4]], 1)
    kind = (odds + rng.gumbel(size=(n, 3))).argmax(1)
    number = x[:, 0] + np.abs(x[:, 1]) + 0.5 * rng.standard_t(3, size=n)
    columns = {f"x{i}": x[:, i] for i in range(6)}
    return columns | {"kind": np.array(["a", "b", "c"])[kind], "number": number * 100}


def fit(source, out, target: str, **how) -> plait.Run:
    inputs = [f"x{i}" for i in range(6)]
    usual = dict(target=target, inputs=inputs, folds=1, system="auto_toy", precision="fp32", out=out, console=QUIET)
    return plait.fit(source, **usual | how)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, plait.Run]:
    """Trained too long, with steps too large, so that it is too sure of itself."""
    place = tmp_path_factory.mktemp("runs")
    found = {
        target: fit(table(1500, 0), place / target, target, epochs=12, lr=3e-3, weight_decay=0.0)
        for target in ("kind", "number")
    }
    return {target: plait.load(run.folder) for target, run in found.items()}


NEW = table(6_000, 1)


def calibration(run: plait.Run) -> float:
    return next(s.value for s in run.evaluate(NEW).scores if s.name == "calibration error")


def test_probabilities_are_calibrated_on_tables_of_more_than_a_thousand_rows(runs) -> None:
    assert calibration(runs["kind"]) < 0.03


@pytest.mark.parametrize("too_sure", [0.4, 3.0])
def test_a_model_that_is_too_sure_or_too_modest_is_put_right(too_sure: float, tmp_path) -> None:
    how = dict(system="auto_toy", folds=1, target="kind", inputs=[f"x{i}" for i in range(6)], precision="fp32")
    data = prepare(table(4000, 2), Settings(**how), QUIET)
    made = recipe(data.info, data.schema, type(data.task), **data.task.needs)
    model = data.task.model(made.bind(made.build()), objective(data.info))
    model.before_training(data.rows, data.splits["train"], 0)
    with torch.no_grad():
        for p in model.head.linear.parameters():
            p.mul_(too_sure)
    job = TableJob(model, data, batch_size=64, seed=0, strength=0.0)
    run = plait.Run(tmp_path, data.schema, data.task, model.eval(), "fp32")
    before = calibration(run)
    calibrate(job)
    assert before > 0.08 and calibration(run) < 0.03
    assert data.task.temperature == pytest.approx(too_sure, rel=0.3)
    again = TASKS["classify"].from_json(data.task.to_json(), data.schema)
    odds = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(*(t.finish({"outputs": odds})["probabilities"] for t in (data.task, again)))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.98])
def test_intervals_hold_so_many_of_new_numbers(runs, level: float) -> None:
    told = runs["number"].predict(NEW, interval=level)
    low, high, answer = (told.column(n).to_numpy() for n in ("low", "high", "number"))
    inside = np.mean((low <= NEW["number"]) & (NEW["number"] <= high))
    assert abs(inside - level) < 3 * (level * (1 - level) / 150) ** 0.5  # of 150 rows that tell how far off
    np.testing.assert_allclose(high - answer, answer - low)
    scores = {s.name: s for s in runs["number"].evaluate(NEW, interval=level).scores}
    assert scores["coverage"].value == pytest.approx(inside) and scores["width"].value == pytest.approx((high - low)[0])
    assert "low" not in runs["number"].predict(NEW).column_names
    assert "coverage" not in {s.name for s in runs["number"].evaluate(NEW).scores}


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_sets_hold_so_many_of_new_classes(runs, level: float) -> None:
    told = runs["kind"].predict(NEW, interval=level)
    sets, answer = told.column("one of").to_pylist(), told.column("kind").to_pylist()
    assert all(a in s for a, s in zip(answer, sets))
    inside = np.mean([t in s for t, s in zip(NEW["kind"], sets)])
    assert level - 3 * (level * (1 - level) / 150) ** 0.5 < inside < (0.96 if level == 0.9 else 1)
    scores = {s.name: s for s in runs["kind"].evaluate(NEW, interval=level).scores}
    assert scores["coverage"].value == pytest.approx(inside)
    assert scores["classes in a set"].value == pytest.approx(np.mean([len(s) for s in sets]))


def test_classes_never_learnt_are_in_no_set(runs) -> None:
    rows = {k: v[:200] for k, v in NEW.items()} | {"kind": np.array(["d", "a"] * 100)}
    found = {s.name: s.value for s in runs["kind"].evaluate(rows, interval=0.98).scores}
    assert found["coverage"] <= 0.5


def test_too_few_rows_are_refused(runs, tmp_path) -> None:
    with pytest.raises(UsageError, match="intervals of 0.999 need at least 999 validation rows, and this run has 150"):
        runs["number"].predict(NEW, interval=0.999)
    for level in (0, 1, 1.5, -0.1):
        with pytest.raises(UsageError, match="expected a share between 0 and 1"):
            runs["number"].predict(NEW, interval=level)
    few = fit(table(40, 0), tmp_path / "few", "number", epochs=1)
    with pytest.raises(UsageError, match="of 0.9 need at least 9 validation rows, and this run has 4"):
        few.predict(NEW, interval=0.9)
    none = fit(table(40, 0), tmp_path / "none", "kind", epochs=1, fractions=(0.8, 0.0, 0.2))
    with pytest.raises(UsageError, match="without validation rows"):
        plait.load(none.folder).predict(NEW, interval=0.5)
    texts = {"t": [f"word {i}" for i in range(30)], "u": [f"other {i}" for i in range(30)]}
    other = plait.fit(texts, task="match", inputs=["t", "u"], kinds={"t": "text", "u": "text"}, system="auto_toy",
                      epochs=1, out=tmp_path / "other", console=QUIET)  # fmt: skip
    with pytest.raises(UsageError, match="intervals are for classification, ordinal regression and regression"):
        other.predict(texts, interval=0.9)


def test_a_changed_model_has_to_learn_anew_how_far_off_it_is(runs, tmp_path) -> None:
    changed = plait.change(runs["number"].folder, ["int8"], out=tmp_path / "small")
    with pytest.raises(UsageError, match="or changed since"):
        plait.load(changed.folder).predict(NEW, interval=0.9)


def test_a_row_of_which_nothing_is_known_gets_the_frequencies_whatever_the_temperature(runs) -> None:
    run = runs["kind"]
    nothing = run.predict({"x0": [None, 1.0]}).to_pylist()[0]
    assert [nothing[f"p({c})"] for c in "abc"] == pytest.approx(run.task.frequencies.tolist(), abs=1e-6)


def test_doubt_is_found_where_labels_are_wrong_at_random() -> None:
    """No temperature is right for a model that is sure of labels of which three in ten are anything."""
    rng = np.random.default_rng(0)
    x = 4 * rng.normal(size=(9000, 3))
    truth = np.where(rng.random(9000) < 0.3, rng.integers(0, 3, 9000), (x + rng.gumbel(size=x.shape)).argmax(1))
    cool, doubt = best_doubt(x[:1000], np.zeros(3), truth[:1000])
    assert doubt == pytest.approx(0.3, abs=0.1) and cool == pytest.approx(1, rel=0.4)

    def error(p: np.ndarray) -> float:
        return CALIBRATION.value(truth[1000:], p, p.argmax(1), w=np.ones(8000), positive=None)

    alone = best_temperature(x[:1000], np.zeros(3), truth[:1000])
    assert error(doubted(x[1000:], np.zeros(3), cool, doubt)) < 0.03
    assert error(doubted(x[1000:], np.zeros(3), alone, 0.0)) > 0.04
    clean = (x + rng.gumbel(size=x.shape)).argmax(1)
    assert best_doubt(x[:1000], np.zeros(3), clean[:1000])[1] <= 0.02
    nothing = doubted(np.zeros((2, 3)) + [0.1, 0.5, 0.2], np.array([0.1, 0.5, 0.2]), 2.0, 0.3)
    np.testing.assert_allclose(nothing[0], np.exp([0.1, 0.5, 0.2]) / np.exp([0.1, 0.5, 0.2]).sum())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.6, 1.0, 2.0, 5.0]), st.booleans())
def test_the_temperature_that_was_put_in_is_found(seed: int, true: float, two: bool) -> None:
    rng = np.random.default_rng(seed)
    n, prior = 4000, np.array([0.3]) if two else np.array([0.2, -0.5, 0.3])
    x = prior + rng.normal(size=(n, len(prior)))
    if two:
        truth = (rng.random(n) < 1 / (1 + np.exp(-x[:, 0]))).astype(int)
    else:
        truth = (x + rng.gumbel(size=x.shape)).argmax(1)
    found = best_temperature(prior + (x - prior) * true, prior, truth)
    assert found == pytest.approx(true, rel=0.25)
    np.testing.assert_allclose(cooled(prior + (x - prior) * true, prior, true), x)
    doubled = np.repeat(np.arange(n), 1 + np.arange(n) % 2)
    weighed = best_temperature(x * 3, prior, truth, 1.0 + np.arange(n) % 2)
    assert weighed == pytest.approx(best_temperature(x[doubled] * 3, prior, truth[doubled]), rel=1e-6)


def test_few_rows_that_are_all_right_are_no_reason_to_be_sure() -> None:
    x = np.tile([[2.0, -2.0]], (12, 1))
    assert best_temperature(x, np.zeros(2), np.zeros(12, int)) == 1
    assert best_temperature(np.repeat(x, 100, 0), np.zeros(2), np.zeros(1200, int)) < 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5000), st.floats(0.01, 0.999))
def test_what_is_kept_never_says_less_than_all_would(n: int, level: float) -> None:
    values = np.random.default_rng(n).random(n)
    misses, rank = Misses.of(values), int(np.ceil((n + 1) * level - 1e-9))
    assert len(misses.values) <= MOST and Misses(**json.loads(json.dumps(misses._asdict()))) == misses
    if rank > n:
        with pytest.raises(UsageError, match="need at least"):
            misses.within(level)
        return
    exact, found = np.sort(values)[rank - 1], misses.within(level)
    assert exact <= found <= np.sort(values)[min(n - 1, rank - 1 + int(np.ceil(n / (MOST - 1))))]


def test_the_command_line_takes_it(runs, tmp_path) -> None:
    import pandas as pd

    pd.DataFrame({k: v[:300] for k, v in NEW.items()}).to_csv(tmp_path / "t.csv", index=False)
    for target, columns in (("number", "low,high"), ("kind", "one of")):
        out, folder = io.StringIO(), str(runs[target].folder)
        with redirect_stdout(out), redirect_stderr(out):
            wrote = main(
                ["predict", folder, str(tmp_path / "t.csv"), "--interval", "90%", "-o", str(tmp_path / "a.csv")]
            )
            scored = main(
                ["evaluate", folder, str(tmp_path / "t.csv"), "--interval", "0.9", "--require", "coverage>=0.8"]
            )
        assert (wrote, scored) == (0, 0), out.getvalue()
        assert columns in (tmp_path / "a.csv").read_text().splitlines()[0].replace('"', "")
        assert "coverage" in out.getvalue()


@pytest.mark.parametrize("quantiles", [(), (0.05, 0.95)])
def test_a_number_that_most_rows_have_is_not_lost_by_rounding(quantiles: tuple[float, ...]) -> None:
    """Answers are float32, and the cells of a table are not."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = np.where(rng.random(200) < 0.7, 0.0, 10 * rng.random(200))
        source = read_table({"x": rng.normal(size=200), "y": y})
        schema = Schema.guess(source, target="y", inputs=["x"])
        schema.ask("number")
        schema.fit(source, np.arange(200))
        task = TASKS["regress"].learn(schema)
        task.quantiles = quantiles
        standard = ((y - task.mean) / task.std).astype(np.float32)
        nothing = np.float32((0 - task.mean) / task.std) + np.zeros((200, max(len(quantiles), 1)), np.float32)
        answers = task.finish({"outputs": nothing})
        task.calibrate({"y": standard}, answers)
        task.interval = 0.5
        told = task.columns(answers)
        assert np.mean((told["low"] <= y) & (y <= told["high"])) >= 0.5
        assert np.max(told["high"] - told["low"]) < 1e-4
