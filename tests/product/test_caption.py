"""`fit --task caption`: pictures and what is said of them, and everything that goes wrong in a table of such."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import plait
from plait.data.samples import glyphs
from plait.errors import DataError, UsageError
from plait.runs.console import Console

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 220), "white": (250, 250, 250)}
PLACES = {"left": (2, 11), "middle": (11, 20), "right": (20, 29)}
FAST = dict(
    task="caption",
    target="said",
    system="git_toy",
    split="split",
    image_size=32,
    precision="fp32",
    augment=0.0,
    batch_size=32,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def table(n: int = 160, seed: int = 0) -> dict[str, list]:
    """A square of some colour at some place, on noise."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {"photo": [], "said": [], "split": []}
    for i in range(n):
        colour, place = rng.choice(list(COLOURS)), rng.choice(list(PLACES))
        pixels = rng.integers(90, 130, (32, 32, 3)).astype(np.uint8)
        pixels[12:21, slice(*PLACES[place])] = COLOURS[colour]
        rows["photo"].append(png(pixels))
        rows["said"].append(f"A {colour} square on the {place}.")
        rows["split"].append("test" if i % 5 == 0 else "val" if i % 5 == 1 else "train")
    return rows


def fit(rows: dict, out: Path, **options):
    return plait.fit(pa.table(rows), out=out, console=Console(quiet=True), **FAST | dict(epochs=2, lr=3e-3) | options)


def test_squares_are_described(tmp_path):
    run = fit(table(400), tmp_path / "run", epochs=24)
    found, usual = run.assessments["test"].scores, {s.name: s.value for s in run.assessments["test"].baseline}
    print(*found, usual)
    assert [s.name for s in found] == ["chrF", "exact match", "BLEU-4", "perplexity"] and set(usual) == {
        "chrF",
        "exact match",
        "BLEU-4",
    }
    assert all(s.low > usual[s.name] for s in found[:3]) and found[1].low > 0.4 and found[3].high < 1.5
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Examples" in page and "square on the" in page and "perplexity" in page
    fresh, loaded = table(40, seed=9), plait.load(tmp_path / "run")
    sure = []
    for beam in (0, 3):
        answers = loaded.predict(pa.table({"photo": fresh["photo"]}), beam=beam)
        assert answers.column_names == ["row", "said", "probability", "unread"]
        right = np.mean([a == b.lower() for a, b in zip(answers["said"].to_pylist(), fresh["said"])])
        assert right > 0.4 and all(0 < p <= 1 for p in answers["probability"].to_pylist())
        sure.append({(row, said): p for row, said, p, _ in zip(*answers.to_pydict().values())})
    alike = sure[0].keys() & sure[1].keys()  # the same text is as probable, however it was found
    assert len(alike) > 20 and all(sure[0][key] == pytest.approx(sure[1][key], rel=1e-3) for key in alike)
    again = loaded.evaluate(pa.table({k: fresh[k] for k in ("photo", "said")}))
    assert again.scores[1].n == 40 and again.scores[1].value > 0.4
    with pytest.raises(UsageError, match="no vectors"):
        loaded.embed(pa.table({"photo": fresh["photo"]}))


def test_whatever_is_wrong_is_said_and_the_rest_is_learnt_from(tmp_path):
    rows = table()
    train, test = ([i for i, s in enumerate(rows["split"]) if s == part] for part in ("train", "test"))
    for k, cell in enumerate((None, b"not a picture", rows["photo"][0][:60])):
        rows["photo"][train[k]] = rows["photo"][test[k]] = cell
    rows["said"][train[5]] = None
    rows["said"][train[6]] = "   "
    rows["said"][test[8]] = (
        "Quite \N{SNOWMAN} unlike the others, and so long that it has to be cut " + "somewhere " * 40
    )
    run = fit(rows, tmp_path / "run")
    bad = {
        (r["row"], r["column"]): r["reason"] for r in pq.read_table(tmp_path / "run" / "bad_rows.parquet").to_pylist()
    }
    assert (train[0], "photo") not in bad and (train[1], "photo") in bad and (train[2], "photo") in bad
    assert bad[train[6], "said"] == "empty text" and (train[5], "said") not in bad and "cut" in bad[test[8], "said"]
    made = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert made["splits"]["train"] == len(train) - 2  # without a text
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    answers = run.predict(pa.table({"photo": [None, b"nothing", rows["photo"][test[10]]]}))
    usual, share = run.task.text["usual"], run.task.text["share"]
    assert answers["said"].to_pylist()[:2] == [usual, usual] and answers["unread"].to_pylist() == ["", "photo", ""]
    assert answers["probability"].to_pylist()[:2] == [share, share]
    scores = {s.name: s for s in run.evaluate(pa.table({k: rows[k] for k in ("photo", "said")})).scores}
    assert scores["chrF"].n == 158 and scores["perplexity"].n == 152  # only texts whose picture is there


def test_a_row_without_a_picture_teaches_nothing(tmp_path):
    rows = table(60)
    rows["photo"][7] = None
    run = fit(rows, tmp_path / "run", epochs=1)
    batch = run.rows(pa.table(rows), asked=True).batch(np.arange(5, 10))
    truth, losses = batch["target"]["said"], []
    for said in (truth[2], truth[0].flip(0)):
        target = torch.where(torch.arange(5)[:, None] == 2, said, truth)
        losses.append(run.model(batch | {"target": {"said": target}}, torch.Generator())["loss"])
    assert torch.equal(*losses) and losses[0] > 0
    everything = batch | {"present": {"image": torch.zeros(5, dtype=torch.bool)}}
    assert run.model(everything, torch.Generator())["loss"] == 0


class Impatient(Console):
    """Presses Ctrl-C at a step."""

    def update(self, now: dict) -> None:
        super().update(now)
        if now["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself Ctrl-C")
def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path):
    rows = table(120)
    whole = fit(rows, tmp_path / "whole", epochs=3, ema=0.9)
    options = FAST | dict(epochs=3, lr=3e-3, ema=0.9)
    part = plait.fit(pa.table(rows), out=tmp_path / "part", console=Impatient(quiet=True), **options)
    assert part.stopped == "interrupted"
    resumed = plait.fit(pa.table(rows), out=tmp_path / "part", resume=True, console=Console(quiet=True))
    loaded = plait.load(tmp_path / "part").model.state_dict()
    assert all(
        torch.equal(v, resumed.model.state_dict()[k]) and torch.equal(v, loaded[k])
        for k, v in whole.model.state_dict().items()
    )
    assert [r["loss"] for r in resumed.history.rows] == [r["loss"] for r in whole.history.rows]


def test_what_cannot_work_is_refused_before_training(tmp_path):
    rows = table(40)
    with pytest.raises(UsageError, match="cannot caption"):
        fit(rows, tmp_path / "a", system="auto_toy")
    with pytest.raises(UsageError, match="needs a target"):
        fit(rows, tmp_path / "b", target=None)
    with pytest.raises(UsageError, match="git_toy does not fit"):
        fit(rows | {"number": list(range(0, 80, 2))}, tmp_path / "c", inputs=["photo", "number"])
    with pytest.raises(DataError, match="one column of pictures"):
        fit(rows | {"note": [f"a note {i} of some words" for i in range(40)]}, tmp_path / "d", inputs=["photo", "note"])
    with pytest.raises(DataError, match="same value in every row|nothing to learn"):
        fit(rows | {"said": ["a"] * 40}, tmp_path / "e")
    with pytest.raises(UsageError, match="tokenizer"):
        fit(rows, tmp_path / "f", system="git_base", pretrained=True)  # before anything is fetched
    with pytest.raises(UsageError, match="git_toy does not fit"):
        fit(rows, tmp_path / "g", task="classify")
    assert not any((tmp_path / name).exists() for name in "abcdefg")


def test_the_command_line(tmp_path):
    pq.write_table(pa.table(table(60)), tmp_path / "squares.parquet")

    def plaits(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "plait.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    line = ["fit", "squares.parquet", "--task", "caption", "--target", "said", "--split", "split"]
    said = plaits(*line, "--epochs", "1", "--dry-run")
    assert "git_nano" in said and "texts of at most" in said and not (tmp_path / "runs").exists()
    assert "chrF" in plaits(*line, "--system", "git_toy", "--epochs", "1", "-o", "run")
    assert "perplexity" in plaits("evaluate", "run", "squares.parquet", "--beam", "2")
    plaits("predict", "run", "squares.parquet", "-o", "answers.csv")
    assert (tmp_path / "answers.csv").read_text().splitlines()[0] == '"row","said","probability","unread"'


def characters(folder: Path, count: int) -> dict[str, list]:
    """Characters in eight typefaces with their Unicode names to learn from, and in four others to name."""
    found = pq.read_table(glyphs(folder)).select(["image", "text", "split"])
    names = sorted({t for t, s in zip(found["text"].to_pylist(), found["split"].to_pylist()) if s == "train"})
    some = set(np.random.default_rng(0).choice(names, count, replace=False))
    rows = [r for r in found.to_pylist() if r["text"] in some]
    parts = {"typefaces": "test", "val": "val", "train": "train"}
    return {
        "photo": [r["image"] for r in rows],
        "said": [r["text"] for r in rows],
        "split": [parts[r["split"]] for r in rows],
    }


def test_characters_are_named_in_typefaces_never_seen(tmp_path):
    run = fit(characters(tmp_path, 24), tmp_path / "run", epochs=24)
    found, usual = run.assessments["test"].scores, {s.name: s.value for s in run.assessments["test"].baseline}
    print(*found, usual)
    assert found[0].name == "chrF" and found[0].low > usual["chrF"] + 0.2 and found[1].low > usual["exact match"] + 0.2
