"""`fit --task transcribe`: real speech, and everything that goes wrong in a table of it."""

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
import soundfile
import torch

import plait
from plait.errors import DataError, UsageError
from plait.runs.console import Console

SPOKEN = Path(__file__).parents[3] / "shared" / "data" / "spoken_digits" / "train.parquet"
WORDS = "zero one two three four five six seven eight nine".split()
FAST = dict(
    task="transcribe",
    target="said",
    system="zipformer_toy",
    split="split",
    precision="fp32",
    augment=0.0,
    batch_size=16,
)
RATE = 8000


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples.astype(np.float32), rate, format="WAV", subtype="PCM_16")
    return out.getvalue()


def tones(text: str, rng: np.random.Generator) -> bytes:
    """A text played: a tone of 0.12 s for each letter, and a pause for a space."""
    t = np.arange(int(0.12 * RATE)) / RATE
    parts = [
        np.zeros(len(t)) if c == " " else 0.5 * np.sin(2 * np.pi * (300 + 250 * (ord(c) - ord("a"))) * t) for c in text
    ]
    return wav(np.concatenate(parts) + 0.01 * rng.normal(size=len(text) * len(t)))


def table(n: int = 160, seed: int = 0) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    said = ["".join(rng.choice(list("abcd "), size=rng.integers(2, 7))).strip() or "a" for _ in range(n)]
    said = [" ".join(s.split()) for s in said]
    parts = ["test" if i % 5 == 0 else "val" if i % 5 == 1 else "train" for i in range(n)]
    return {"sound": [tones(s, rng) for s in said], "said": said, "split": parts}


def fit(rows: dict, out: Path, **options):
    return plait.fit(pa.table(rows), out=out, console=Console(quiet=True), **FAST | dict(epochs=2, lr=3e-3) | options)


def test_letters_as_tones_are_learnt(tmp_path):
    """A toy on one core in seconds: it must write, not merely beat the commonest text."""
    run = fit(table(200), tmp_path / "run", epochs=14, lr=1e-2)
    words, characters, exact = run.assessments["test"].scores
    print(words, characters, exact)
    assert characters.high < 0.3 < run.assessments["test"].baseline[1].value
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Truth and answer" in page and "word error rate" in page
    fresh = table(30, seed=9)
    answers = plait.load(tmp_path / "run").predict(pa.table({"sound": fresh["sound"]}))
    assert answers.column_names == ["row", "said", "probability", "unread"]
    beam = plait.load(tmp_path / "run").predict(pa.table({"sound": fresh["sound"]}), beam=8)
    right = [sum(a == b for a, b in zip(found["said"].to_pylist(), fresh["said"])) for found in (answers, beam)]
    assert min(right) >= 10
    for found in (answers, beam):
        assert all(0 < p <= 1 for p in found["probability"].to_pylist())


def test_whatever_is_wrong_is_said_and_the_rest_is_learnt_from(tmp_path):
    rows = table()
    train = [i for i, s in enumerate(rows["split"]) if s == "train"]
    test = [i for i, s in enumerate(rows["split"]) if s == "test"]
    for k, cell in enumerate((None, b"not a sound", rows["sound"][0][:60], wav(np.zeros(3)))):
        rows["sound"][train[k]] = rows["sound"][test[k]] = cell
    rows["said"][train[5]] = None
    rows["said"][train[6]] = "   "
    rows["said"][train[7]] = "abcd " * 30  # far more letters than the sound has frames
    rows["said"][test[8]] = "ab z"  # a letter that no training row has
    run = fit(rows, tmp_path / "run")
    bad = {
        (r["row"], r["column"]): r["reason"] for r in pq.read_table(tmp_path / "run" / "bad_rows.parquet").to_pylist()
    }
    assert (train[0], "sound") not in bad and (train[1], "sound") in bad and (train[2], "sound") in bad
    assert bad[train[6], "said"] == "empty text" and (train[5], "said") not in bad
    assert "too long for its sound" in bad[train[7], "said"] and "too long for its sound" in bad[train[3], "said"]
    assert "character" in bad[test[8], "said"]
    said = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert said["splits"]["train"] == len(train) - 4  # without a text (2), too short (2)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    answers = run.predict(pa.table({"sound": [None, b"nothing", rows["sound"][test[10]]]}))
    common = run.task.text["usual"]
    assert answers["said"].to_pylist()[:2] == [common, common] and answers["unread"].to_pylist() == ["", "sound", ""]
    assert run.evaluate(pa.table({k: rows[k] for k in ("sound", "said")})).scores[0].n == len(rows["said"]) - 2


class Impatient(Console):
    """Presses Ctrl-C at a step."""

    def update(self, now: dict) -> None:
        super().update(now)
        if now["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send itself Ctrl-C")
def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path):
    rows = table(80)
    whole = fit(rows, tmp_path / "whole", epochs=3, ema=0.9)
    options = FAST | dict(epochs=3, lr=3e-3, ema=0.9)
    part = plait.fit(pa.table(rows), out=tmp_path / "part", console=Impatient(quiet=True), **options)
    assert part.stopped == "interrupted" and len(part.history.rows if part.history else []) < 3
    resumed = plait.fit(pa.table(rows), out=tmp_path / "part", resume=True, console=Console(quiet=True))
    loaded = plait.load(tmp_path / "part").model.state_dict()
    assert all(
        torch.equal(v, resumed.model.state_dict()[k]) and torch.equal(v, loaded[k])
        for k, v in whole.model.state_dict().items()
    )
    assert [r["loss"] for r in resumed.history.rows] == [r["loss"] for r in whole.history.rows]


def test_pieces_and_odd_texts(tmp_path):
    rows = table(60)
    rows["said"] = [f"{s} {i % 3}" for i, s in enumerate(rows["said"])]
    run = fit(rows, tmp_path / "run", epochs=1, pieces=30)
    spelling = run.task.text["spelling"]
    assert spelling["merges"] and plait.load(tmp_path / "run").task.text == json.loads(json.dumps(run.task.text))
    rows["said"] = [100 + i % 7 for i in range(60)]  # numbers are texts where transcribing was asked for
    run = fit(rows, tmp_path / "numbers", epochs=1)
    assert set("".join(run.task.text["spelling"]["pieces"])) <= set("0123456789")


def test_what_cannot_work_is_refused_before_training(tmp_path):
    rows = table(40)
    with pytest.raises(UsageError, match="cannot transcribe"):
        fit(rows, tmp_path / "a", system="auto_toy")
    with pytest.raises(UsageError, match="needs a target"):
        fit(rows, tmp_path / "b", target=None)
    with pytest.raises(UsageError, match="reads audio"):
        fit(rows | {"number": list(range(0, 80, 2))}, tmp_path / "c", inputs=["sound", "number"])
    with pytest.raises(DataError, match="same value in every row|nothing to learn"):
        fit(rows | {"said": ["a"] * 40}, tmp_path / "d")
    with pytest.raises(DataError, match="long enough"):
        fit(rows | {"said": [s * 60 for s in rows["said"]]}, tmp_path / "e")
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_the_command_line(tmp_path):
    pq.write_table(pa.table(table(60)), tmp_path / "letters.parquet")

    def plaits(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "plait.cli", *words], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    line = [
        "fit",
        "letters.parquet",
        "--task",
        "transcribe",
        "--target",
        "said",
        "--system",
        "zipformer_toy",
        "--split",
        "split",
    ]
    said = plaits(*line, "--epochs", "1", "--dry-run")
    assert "texts of 5 characters" in said and not (tmp_path / "runs").exists()
    assert "word error rate" in plaits(*line, "--epochs", "1", "-o", "run")
    assert "character error rate" in plaits("evaluate", "run", "letters.parquet", "--beam", "4")
    plaits("predict", "run", "letters.parquet", "-o", "answers.csv", "--beam", "4")
    assert (tmp_path / "answers.csv").read_text().splitlines()[0] == '"row","said","probability","unread"'


def spoken(n: int, seed: int) -> dict[str, list]:
    """Two spoken digits of one speaker, from recordings that no other split has."""
    data, rng = pq.read_table(SPOKEN), np.random.default_rng(seed)
    keep = np.asarray([int(f.rsplit("_", 1)[1].split(".")[0]) for f in data["file"].to_pylist()])
    digit, speaker, cells = np.asarray(data["digit"]), np.asarray(data["speaker"]), data["audio"].to_pylist()
    rows: dict = {"sound": [], "said": [], "split": []}
    for split, low, high, share in (("train", 5, 40, 0.8), ("val", 40, 45, 0.1), ("test", 45, 50, 0.1)):
        for _ in range(round(n * share)):
            mine = np.flatnonzero((speaker == "jackson") & (keep >= low) & (keep < high) & (digit < 4))
            two = rng.choice(mine, 2)
            rows["sound"].append(wav(np.concatenate([soundfile.read(io.BytesIO(cells[i]))[0] for i in two])))
            rows["said"].append(" ".join(WORDS[digit[i]] for i in two))
            rows["split"].append(split)
    return rows


@pytest.mark.skipif(not SPOKEN.is_file(), reason="the recordings of spoken digits are not on hand")
def test_spoken_words_are_learnt(tmp_path):
    run = fit(spoken(300, 0), tmp_path / "run", epochs=8, lr=1e-2)
    words, characters, _ = run.assessments["test"].scores
    print(words, characters)
    assert characters.high < run.assessments["test"].baseline[1].low
