"""Several seeds of one run: trained beside the same simple models, answering by their mean."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import torch

import plait
from plait.errors import UsageError
from plait.runs import seeds
from plait.runs.console import Console
from plait.runs.folder import read_json
from plait.tasks.classify import Classify, ClassifyMany
from plait.tasks.rowwise import AnswerTask
from plait.train.loop import train

ROWS = 90


def frame(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 2))
    words = np.where(x[:, 0] > 0, "good and fine", "bad and poor")
    y = np.where(x[:, 0] + x[:, 1] + rng.normal(0, 0.5, ROWS) > 0, "yes", "no")
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "t": [f"{w} {i}" for i, w in enumerate(words)], "y": y})


def fitted(folder, table=None, **how) -> plait.Run:
    quiet = Console(io.StringIO(), quiet=True)
    how = {"target": "y", "epochs": 2, "folds": 1, "no_ladder": True, "seeds": 3, "kinds": {"t": "text"}} | how
    if how.get("resume"):
        how = {"resume": True}
    return plait.fit(frame() if table is None else table, out=folder, console=quiet, **how)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> plait.Run:
    return fitted(tmp_path_factory.mktemp("seeds") / "run")


def probabilities(run: plait.Run, table: pd.DataFrame) -> np.ndarray:
    found = run.predict(table).to_pandas()
    return found[["p(no)", "p(yes)"]].to_numpy(np.float64)


def test_answers_are_the_mean_of_what_each_seed_says(run) -> None:
    model, new = run.model, frame(1).drop(columns="y")
    batch = run.rows(new).batch(np.arange(ROWS))
    with torch.no_grad():
        each = torch.stack([one.alone(batch) for one in (model, *model.twins)])
        whole = model.answer(batch)["outputs"].softmax(1)
    assert len(each) == 3 and all((each[i] - each[j]).abs().max() > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))
    torch.testing.assert_close(whole, each.softmax(2).mean(0))


def test_it_is_loaded_judged_and_verified_as_any_run(run) -> None:
    again, new = plait.load(run.folder), frame(1)
    np.testing.assert_array_equal(probabilities(again, new), probabilities(run, new))
    assert [s.value for s in again.evaluate(new).scores] == [s.value for s in run.evaluate(new).scores]
    assert again.evaluate(new).scores[0].value > 0.6 and (run.folder / "report.html").exists()
    found = plait.verify(run.folder)
    assert {f.state for f in found} == {"right"} and any(f.file.startswith("seeds/2/") for f in found)
    assert read_json(run.folder / "report.json")["cost"]["parameters"] == sum(p.numel() for p in run.model.parameters())


def test_a_row_with_nothing_gets_the_prior(run) -> None:
    nothing = probabilities(run, pd.DataFrame({"a": [None], "b": [None], "t": [None]}).astype({"a": float, "b": float}))
    np.testing.assert_allclose(nothing[0], run.task.frequencies, atol=1e-5)


class Ended(Exception):
    pass


def test_a_run_that_was_ended_goes_on_to_the_same(run, tmp_path, monkeypatch) -> None:
    """Killed when the second seed had trained and the third had not begun."""
    begun = []

    def ended(job, plan, folder, **how):
        begun.append(folder.name)
        if len(begun) == 2:
            raise Ended
        return train(job, plan, folder, **how)

    monkeypatch.setattr(seeds, "train", ended)
    with pytest.raises(Ended):
        fitted(tmp_path / "run")
    assert begun == ["1", "2"] and not (tmp_path / "run" / "model.safetensors").exists()
    trained = []

    def counted(job, plan, folder, **how):
        history = train(job, plan, folder, **how)
        trained.append((folder.name, how["resume"]))
        return history

    monkeypatch.setattr(seeds, "train", counted)
    again = fitted(tmp_path / "run", resume=True)
    assert trained == [("1", True), ("2", False)]
    np.testing.assert_array_equal(probabilities(again, frame(1)), probabilities(run, frame(1)))


def test_the_same_simple_models_stand_beneath_all(tmp_path) -> None:
    found = fitted(tmp_path / "run", seeds=2)
    laddered = fitted(tmp_path / "other", seeds=2, no_ladder=False)
    assert found.model.ladder is None and laddered.model.ladder is not None
    assert len(laddered.model.twins) == 1 and laddered.model.twins[0].ladder is None
    assert len(plait.load(laddered.folder).model.twins) == 1


def test_what_has_no_mean_is_refused(run, tmp_path) -> None:
    table = frame().assign(said=[f"word {i % 3}" for i in range(ROWS)])
    with pytest.raises(UsageError, match="has none: leave out --seeds"):
        fitted(tmp_path / "a", table, target=None, task="retrieve", inputs=["t", "said"], kinds={"said": "text"})
    with pytest.raises(UsageError, match="seeds must be above 0"):
        fitted(tmp_path / "b", seeds=0)
    with pytest.raises(UsageError, match="several seeds"):
        run.embed(frame())
    with pytest.raises(UsageError, match="several seeds"):
        plait.change(run.folder, ["int8"], out=tmp_path / "c")


def test_the_mean_is_of_probabilities_or_numbers() -> None:
    z = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Classify.pooled(None, z).softmax(1), z.softmax(2).mean(0))
    torch.testing.assert_close(ClassifyMany.pooled(None, z).sigmoid(), z.sigmoid().mean(0))
    torch.testing.assert_close(AnswerTask.pooled(None, z), z.mean(0))
