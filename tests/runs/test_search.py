"""Trials: several plans on the same rows, judged by those that watch; the best one trains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import plait
from plait.errors import UsageError
from plait.runs import search
from plait.runs.assess import assess
from plait.runs.console import Console

pytest.importorskip("optuna", reason="what --trials needs is an extra: pip install 'plait[tune]'")
QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(path: Path) -> str:
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 240))
    lines = [f"{a:.3f},{b:.3f},{'yes' if a * b > 0 else 'no'}" for a, b in zip(x, z)]
    (path / "t.csv").write_text("x,z,y\n" + "\n".join(lines) + "\n")
    return str(path / "t.csv")


def fit(source, out: Path, **how) -> plait.Run:
    usual = dict(target="y", system="auto_toy", precision="fp32", epochs=2, folds=1, console=QUIET)
    return plait.fit(source, out=out, **usual | how)


def test_the_best_plan_on_the_rows_that_watch_trains(tmp_path, monkeypatch) -> None:
    source, seen = table(tmp_path), []

    def spy(*given, **how):
        seen.append(json.loads((tmp_path / "r" / "trials.json").read_text()))  # after the search
        return assess(*given, **how)

    monkeypatch.setattr("plait.runs.fit.assess", spy)
    run = fit(source, tmp_path / "r", trials=5)
    told, config = (json.loads((tmp_path / "r" / f"{n}.json").read_text()) for n in ("trials", "config"))
    assert len(seen) == 1 and len(told["trials"]) == 5
    best = max(told["trials"], key=lambda t: t["score"])
    assert told["best"] == best["trial"]
    plan = {name: config["plan"][name] for name in ("lr", "weight_decay", "batch_size")}
    assert plan == {name: best[name] for name in plan}
    assert max(row["score"] for row in run.history.rows) == pytest.approx(best["score"], abs=1e-6)
    plain = fit(source, tmp_path / "p")
    first = json.loads((tmp_path / "p" / "config.json").read_text())["plan"]
    usual = next(t for t in told["trials"] if t["trial"] == 0)  # what fit would have done is among those tried
    assert usual["lr"] == pytest.approx(first["lr"]) and usual["batch_size"] == first["batch_size"]
    assert usual["score"] == pytest.approx(max(row["score"] for row in plain.history.rows), abs=1e-6)
    assert len({t["lr"] for t in told["trials"]}) == 5 and not list((tmp_path / "r").glob("trial_*"))
    assert plait.load(run.folder).predict({"x": 1.0, "z": 1.0}).num_rows == 1


def test_a_search_that_is_ended_goes_on(tmp_path, monkeypatch) -> None:
    source, calls, real = table(tmp_path), [], search.train

    def killed(*given, **how):
        calls.append(given[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **how)

    monkeypatch.setattr(search, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(source, tmp_path / "r", trials=4)
    run = plait.fit(out=tmp_path / "r", resume=True, console=QUIET)
    assert run.stopped == "finished" and len(calls) == 5  # two before, two after
    assert len(json.loads((tmp_path / "r" / "trials.json").read_text())["trials"]) == 4
    assert sum(p.lr == calls[0].lr for p in calls) == 1  # what was tried is not tried again


def test_a_plan_whose_loss_is_not_finite_is_none(tmp_path, monkeypatch) -> None:
    source, real, count = table(tmp_path), search.train, []

    def bad(*given, **how):
        count.append(1)
        if len(count) < 3:
            raise UsageError("the loss is not finite")
        return real(*given, **how)

    monkeypatch.setattr(search, "train", bad)
    fit(source, tmp_path / "r", trials=3)
    assert json.loads((tmp_path / "r" / "trials.json").read_text())["best"] == 2
    monkeypatch.setattr(search, "train", lambda *given, **how: bad(*given, **how) if count.clear() else bad())
    with pytest.raises(UsageError, match="no trial could be trained"):
        fit(source, tmp_path / "s", trials=2)


def test_without_optuna_it_is_said_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'plait\[tune\]'"):
        fit(tmp_path / "not_there.csv", tmp_path / "r", trials=2)
    with pytest.raises(UsageError, match="trials must be above 0"):
        fit(tmp_path / "not_there.csv", tmp_path / "r", trials=0)
