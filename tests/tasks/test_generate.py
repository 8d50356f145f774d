"""Pictures made for rows: seeds, rows that ask for nothing, the codec that learns first, and how sets are compared."""

from __future__ import annotations

import io
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.errors import UsageError
from plait.evaluate.generated import distance
from plait.runs.console import Console
from plait.tasks.generate import Painter, blurred

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}


def plain(n: int, seed: int = 0) -> dict[str, list]:
    """Pictures of one colour each, which has a name and is told in a sentence."""
    rng = np.random.default_rng(seed)
    names = [str(c) for c in rng.choice(list(COLOURS), n)]
    cells = []
    for name in names:
        out = io.BytesIO()
        field = np.clip(np.array(COLOURS[name]) + rng.normal(0, 8, 3), 0, 255) * np.ones((8, 8, 1))
        Image.fromarray(field.astype(np.uint8)).save(out, "PNG")
        cells.append(out.getvalue())
    return {"colour": names, "picture": cells, "note": [f"the {n} one of them {i}" for i, n in enumerate(names)]}


def fit(rows: dict, out, **options) -> plait.Run:
    usual = dict(task="generate", target="picture", system="dit_toy", console=Console(quiet=True), precision="fp32")
    return plait.fit(rows, out=out, **usual | dict(inputs=["colour"]) | options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(plain(240), tmp_path_factory.mktemp("generate") / "run", epochs=30, lr=3e-3)


def made(run, colours: list, **how) -> list[bytes]:
    return run.predict({"colour": colours}, **how)["picture"].to_pylist()


def pixels(cell: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell)), float)


def test_a_row_gets_what_it_asks_for(run):
    asked = [*COLOURS] * 4
    nearest = []
    for cell in made(run, asked):
        apart = np.abs(np.array([*COLOURS.values()]) - pixels(cell).mean((0, 1))).sum(1)
        nearest.append([*COLOURS][int(apart.argmin())])
    assert sum(a == b for a, b in zip(asked, nearest)) >= 10, nearest
    scores, floor = (
        {s.name: s for s in part} for part in (run.assessments["test"].scores, run.assessments["test"].baseline)
    )
    assert scores["distance"].high < floor["distance"].value and scores["named right"].low > floor["named right"].value
    assert {"distance, blurred", "distance, real halves", "named right, real"} < set(scores)


def test_one_seed_gives_the_same_pictures_and_another_other_ones(run):
    first = made(run, ["red", "blue", "red"])
    assert first[0] != first[2], "each row has noise of its own"
    assert made(plait.load(run.folder), ["red", "blue", "red"], seed=0) == first
    other = made(run, ["red", "blue", "red"], seed=1)
    assert all(a != b for a, b in zip(first, other))
    alone = made(run, ["red"])[0]
    assert np.abs(pixels(alone) - pixels(first[0])).max() <= 1, "whoever stands beside it"


def test_what_is_missing_or_was_never_seen_asks_for_nothing(run):
    nothing = made(run, [None])
    assert made(run, ["mauve"]) == nothing and made(run, ["red"]) != nothing
    assert made(run, ["red"], guidance=0.0) == nothing == made(run, [None], guidance=1.0)
    assert made(run, ["red"], guidance=1.0) != made(run, ["red"], guidance=4.0)
    assert made(run, ["red"], steps=5) != made(run, ["red"])


def test_answers_are_files_and_options_that_cannot_be_are_refused(run, tmp_path):
    table = run.predict({"colour": ["red", None]}, out=tmp_path / "made.csv")
    names = table["picture"].to_pylist()
    assert names == ["made_picture/000000.png", "made_picture/000001.png"]
    assert all(Image.open(tmp_path / n).size == (16, 16) for n in names)
    for wrong in (dict(steps=0), dict(guidance=-1.0), dict(seed=-1), dict(beam=2)):
        with pytest.raises(UsageError):
            made(run, ["red"], **wrong)
    with pytest.raises(UsageError, match="dit_toy does not fit"):
        fit(plain(20) | {"other": plain(20, 1)["picture"]}, tmp_path / "a", inputs=["other"])


def test_a_text_is_read_too_and_a_codec_learns_first_and_is_then_left_alone(tmp_path):
    made_of = fit(
        plain(24), tmp_path / "run", inputs=["colour", "note"], system="dit_nano", epochs=1, kinds={"note": "text"}
    )
    model, rows = made_of.model, made_of.rows(plain(24), asked=True)
    codec = model.bound.system.codec
    assert codec is not None and not any(p.requires_grad for p in [*codec.parameters(), *model.tower.parameters()])
    assert set(model.bound.takes) == {"category", "text_0"} and set(model.texts) == {"text_0"}
    with torch.no_grad():
        z = (model.latents(rows.batch(np.arange(24))["target"]["picture"]) - model.centre) / model.spread
    assert z.mean().abs() < 0.3 and 0.7 < z.std() < 1.3
    told = [made_of.rows({"note": [note]}).batch(np.arange(1)) for note in ("the red one", "a blue thing", None)]
    with torch.no_grad():
        red, blue, none = (model.bound.system.condition(model.bound.prepared(batch))[0] for batch in told)
    assert not torch.allclose(red, blue) and not torch.allclose(red, none)


class Impatient(Console):
    """Presses Ctrl-C at a step."""

    def update(self, now: dict) -> None:
        super().update(now)
        if now["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself Ctrl-C")
def test_a_resumed_run_ends_as_one_that_was_not_stopped_and_learns_nothing_anew(tmp_path, monkeypatch):
    rows, how = plain(60), dict(epochs=3, batch_size=16)
    rows["picture"][3] = None
    whole = fit(rows, tmp_path / "whole", **how)
    assert fit(rows, tmp_path / "part", console=Impatient(quiet=True), **how).stopped == "interrupted"
    monkeypatch.delattr(Painter, "learn_first")
    resumed = plait.fit(rows, out=tmp_path / "part", resume=True, console=Console(quiet=True))
    state = resumed.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in whole.model.state_dict().items())
    batch = whole.rows(rows, asked=True).batch(np.arange(8))
    losses = []
    for colour in (0.1, 0.9):  # a picture that is not there teaches nothing
        target = batch["target"]["picture"].clone()
        target[5] = torch.nan if colour == 0.1 else colour
        losses.append(whole.model(batch | {"target": {"picture": target}}, torch.Generator().manual_seed(0))["loss"])
    assert losses[0] != losses[1] and all(loss.isfinite() for loss in losses)


def test_distances_are_the_unbiased_ones():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(0.4, 1, size=(40, 5))

    def k(a, b):
        return (a @ b / 5 + 1) ** 3

    pairs = [(i, j) for i in range(40) for j in range(40) if i != j]
    want = np.mean([k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j]) for i, j in pairs])
    found = distance("distance", x, y)
    assert found.value == pytest.approx(want) and found.low < want < found.high and found.better == "lower"
    same = [distance("d", rng.normal(size=(60, 5)), rng.normal(size=(60, 5))).value for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 60**0.5, "about nothing for two sets of one kind"
    assert distance("d", x, x + 0.01).value < found.value / 50


def test_blurring_keeps_the_mean_and_lessens_differences():
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    assert blurred(x).shape == x.shape and blurred(x).var() < x.var() / 4
    assert torch.allclose(blurred(torch.full((1, 3, 4, 4), 0.3)), torch.full((1, 3, 4, 4), 0.3))
