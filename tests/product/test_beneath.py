"""Fits with simple models beneath: they answer where the network adds nothing, are in the run, and go on with it."""

from __future__ import annotations

import io
import json
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import plait
from plait.errors import DataError
from plait.runs import beneath, planning
from plait.runs import fit as fitting
from plait.runs.console import Console
from plait.runs.folder import LADDER
from plait.runs.settings import Settings
from plait.tasks.beneath import Ladder, learn, several
from plait.train.loop import Plan, Trainer

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ana", "olo", "iri", "eku", "uvo")]
LIKE = dict(target="y", system="auto", epochs=2, seed=0, console=Console(quiet=True), folds=1)


def table(n: int = 300, seed: int = 0) -> pd.DataFrame:
    """Texts of eight words out of sixty, of which six tell the answer, beside a number that tells a little."""
    rng = np.random.default_rng(seed)
    texts = [rng.choice(WORDS, 8, replace=False) for _ in range(n)]
    score = np.asarray([sum(w in t for w in WORDS[:3]) - sum(w in t for w in WORDS[3:6]) for t in texts])
    number = rng.normal(size=n) + 0.5 * score
    return pd.DataFrame({"text": [" ".join(t) for t in texts], "number": number,
                         "y": np.where(score + 0.3 * rng.normal(size=n) > 0, "yes", "no")})  # fmt: skip


def stopped(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return plait.fit(table(), test=table(300, 1), out=tmp_path_factory.mktemp("beneath") / "r", **LIKE)


def test_a_fit_never_loses_to_words_and_logistic_regression(run):
    train, test = table(), table(1500, 3)
    reader = TfidfVectorizer().fit(train["text"])
    peer = LogisticRegression(C=10).fit(reader.transform(train["text"]), train["y"])
    peer = peer.score(reader.transform(test["text"]), test["y"])
    assert run.evaluate(test).scores[0].value >= peer - 0.01
    told = json.loads((run.folder / "report.json").read_text())["splits"]["test"]["rungs"]
    assert told["linear"]["value"] > 0.7
    assert "What simple models reach on test rows" in (run.folder / "report.html").read_text()


def test_the_run_that_is_loaded_answers_the_same(run):
    there = run.predict(table(50, 2))
    assert plait.load(run.folder).predict(table(50, 2)).equals(there)
    none = run.predict(table(3, 2).assign(text=None, number=None)).to_pydict()
    assert len(set(none["probability"])) == 1  # of nothing, the training rows' frequencies


def test_a_damaged_ladder_is_one_sentence(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "r")
    path = tmp_path / "r" / LADDER
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=LADDER):
        plait.load(tmp_path / "r")


def test_it_goes_on_with_the_ladder_that_it_has(tmp_path, monkeypatch):
    one = plait.fit(table(120), out=tmp_path / "a", **LIKE)
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            plait.fit(table(120), out=tmp_path / "b", **LIKE)
    with monkeypatch.context() as patch:
        patch.setattr(learn, "climb", stopped)  # it is not learnt anew
        two = plait.fit(table(120), out=tmp_path / "b", resume=True, console=Console(quiet=True))
    assert two.predict(table(40, 2)).equals(one.predict(table(40, 2)))
    watched = []
    monkeypatch.setattr(Ladder, "join", lambda ladder, beneath, *_: watched.append(beneath) or 0.0)
    plait.fit(table(120), out=tmp_path / "b", resume=True, epochs=3, console=Console(quiet=True))
    fresh = plait.fit(table(120), out=tmp_path / "c", **(LIKE | {"epochs": 3}))
    assert fresh is not None
    assert np.array_equal(watched[0], watched[-1])  # by a ladder that has not seen the rows that watch


def test_it_reads_the_rows_that_it_learns_from_and_says_how_many(tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "ROWS", {"linear": 100, "trees": 150})
    read, given, stream = [], beneath.given, io.StringIO()
    monkeypatch.setattr(beneath, "given", lambda rows, index: read.append(index) or given(rows, index))
    run = plait.fit(table(), out=tmp_path / "r", **(LIKE | {"console": Console(stream)}))
    assert len(np.unique(read[0])) == 150 and len(read[1]) == 30
    assert "on 150 of 240 rows" in " ".join(stream.getvalue().split())
    assert run.model.ladder.rungs


def test_of_many_rows_they_are_learnt_beside_the_first_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "ROWS", {"linear": 100, "trees": 150})
    began, climb, step = threading.Event(), several.climb, Trainer._step

    def late(*args):
        assert began.wait(60), "the training waits for simple models"
        return climb(*args)

    monkeypatch.setattr(several, "climb", late)
    monkeypatch.setattr(Trainer, "_step", lambda *args: began.set() or step(*args))
    run = plait.fit(table(), out=tmp_path / "a", **LIKE)
    assert plait.load(run.folder).model.ladder.rungs == run.model.ladder.rungs
    monkeypatch.setattr(several, "climb", climb)
    other = plait.fit(table(), out=tmp_path / "b", **LIKE)
    assert other.predict(table(40, 2)).equals(run.predict(table(40, 2)))
    monkeypatch.setattr(several, "climb", stopped)
    with pytest.raises(KeyboardInterrupt):
        plait.fit(table(), out=tmp_path / "c", **LIKE)


def test_a_network_that_has_nothing_to_gain_is_given_little(tmp_path):
    frame, stream = table(200), io.StringIO()
    frame["number"] = np.where(frame["y"] == "yes", 3.0, -3.0)
    told = LIKE | {"epochs": None}
    run = plait.fit(frame, out=tmp_path / "a", **(told | {"console": Console(stream)}))
    plan = json.loads((run.folder / "config.json").read_text())["plan"]
    assert run.model.ladder.left < planning.LITTLE and plan["epochs"] == plan["patience"]
    assert len(run.history.rows) == 1 and plan["enough"] == 1.0  # simple models alone make no fault
    assert "next to nothing to learn" in stream.getvalue()
    assert plait.load(run.folder).predict(frame[:9]).equals(run.predict(frame[:9]))
    hard = plait.fit(table(200), out=tmp_path / "b", dry_run=True, **told)
    assert hard["plan"]["epochs"] > plan["epochs"]
    asked = planning.shortened(Settings(target="y", epochs=50), Plan(50, 8, 0.1, patience=10), run.model.ladder)
    assert asked.epochs == 50  # who names a number has it
    run.model.ladder.told = {"linear": 0.5}
    assert planning.shortened(Settings(target="y"), Plan(50, 8, 0.1, patience=10), run.model.ladder).epochs == 50
    cost = {"seconds": 130.0, "folds_seconds": 30.0, "steps": 500, "parameters": 7}
    told = planning.shortened_cost(cost, Plan(50, 8, 0.1), Plan(10, 8, 0.1))
    assert told == {"seconds": 50.0, "folds_seconds": 30.0, "steps": 100, "parameters": 7}


def test_without_it_nothing_is_learnt_beneath(tmp_path):
    run = plait.fit(table(120), out=tmp_path / "r", no_ladder=True, **LIKE)
    assert run.model.ladder is None
    assert not (tmp_path / "r" / LADDER).exists()


def test_rows_that_count_nothing_teach_nothing(tmp_path):
    """Half of the rows have the wrong answer, and weigh nothing."""
    frame = table(240)
    wrong = np.arange(240) % 2 == 1
    frame.loc[wrong, "y"] = np.where(frame.loc[wrong, "y"] == "yes", "no", "yes")
    frame["weight"] = np.where(wrong, 0.0, 1.0)
    run = plait.fit(frame, sample_weight="weight", out=tmp_path / "r", **LIKE)
    assert run.evaluate(table(300, 1).assign(weight=1.0)).scores[0].value > 0.62  # else a coin's
