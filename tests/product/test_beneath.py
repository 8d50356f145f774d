"""Fits with simple models beneath: they answer where the network adds nothing, are in the run, and go on with it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import plait
from plait.errors import DataError
from plait.runs.console import Console
from plait.runs.folder import LADDER

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
    plait.fit(table(120), out=tmp_path / "b", **(LIKE | {"epochs": 1}))
    from plait.tasks.beneath import learn

    monkeypatch.setattr(learn, "climb", None)  # it is not learnt anew
    two = plait.fit(table(120), out=tmp_path / "b", resume=True, epochs=2, console=Console(quiet=True))
    assert two.predict(table(40, 2)).equals(one.predict(table(40, 2)))


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
