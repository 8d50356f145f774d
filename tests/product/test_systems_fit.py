"""Every system of the catalogue trains through `fit` on a small real sample of its tasks, and answers better than no
model at all.

A new system is tested by existing: its samples follow from what it takes and from its roles.
"""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import plait
from plait.core.catalog import System, systems
from plait.data.worlds import WORLDS, play
from plait.evaluate.intervals import Score
from plait.runs.console import Console
from plait.tasks import tasks_of

SCRIPTS = ("GREEK", "CYRILLIC", "ARMENIAN", "HEBREW")
SPOKEN = Path(__file__).parents[3] / "shared" / "data" / "spoken_digits" / "train.parquet"
WORDS = "zero one two three four five six seven eight nine".split()


class Sample(NamedTuple):
    """takes: the modalities of the table; exact: only for systems that take just these. options: of the fit."""

    takes: set[str]
    exact: bool
    task: str
    make: Callable[[], dict[str, list]]
    options: dict


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def split(n: int) -> list[str]:
    return ["test" if i % 4 == 0 else "val" if i % 12 == 1 else "train" for i in range(n)]


def handwriting(n: int, only: tuple[int, ...] = tuple(range(10))) -> tuple[np.ndarray, np.ndarray]:
    """Some handwritten digits in a random order: pictures (n, 8, 8) from 0 to 255, and which they are (n,)."""
    found = load_digits()
    index = np.random.default_rng(0).permutation(np.flatnonzero(np.isin(found.target, only)))[:n]
    return found.images[index] * 15.9, found.target[index]


def digits() -> dict[str, list]:
    images, kinds = handwriting(1000)
    return {"photo": [png(i) for i in images], "label": [WORDS[k] for k in kinds], "split": split(1000)}


def scripts() -> dict[str, list]:
    """Names of letters without the name of their script, which is asked for."""
    names = [unicodedata.name(chr(c), "").split(" ", 1) for c in range(0x370, 0x5F5)]
    rows = [
        (rest.lower(), script) for script, *more in names for rest in more if script in SCRIPTS and "LETTER" in rest
    ]
    order = np.random.default_rng(0).permutation(len(rows))
    return {"name": [rows[i][0] for i in order], "label": [rows[i][1] for i in order], "split": split(len(rows))}


def noisy() -> dict[str, list]:
    """Digits under so much noise that an empty page is nearer to them."""
    images, _ = handwriting(600)
    loud = np.clip(images + np.random.default_rng(0).normal(0, 120, images.shape), 0, 255)
    return {"photo": [png(i) for i in loud], "clear": [png(i) for i in images], "split": split(600)}


def captions() -> dict[str, list]:
    """Digits and what they are called."""
    images, kinds = handwriting(800)
    return {"photo": [png(i) for i in images], "name": [f"this is a {WORDS[k]}" for k in kinds], "split": split(800)}


def sequels() -> dict[str, list]:
    """Two digits and what they are the other way round, in words."""
    pairs = np.random.default_rng(0).integers(0, 10, (600, 2))
    told = [(f"first {WORDS[a]} then {WORDS[b]}", f"{WORDS[b]} {WORDS[a]}") for a, b in pairs]
    return {"said": [t for t, _ in told], "answer": [a for _, a in told], "split": split(600)}


def said() -> dict[str, list]:
    """Digits, and what somebody takes them for who is right half of the time; a quarter of the cells is missing."""
    images, kinds = handwriting(800)
    rng = np.random.default_rng(1)
    words = np.where(rng.random(800) < 0.5, kinds, rng.integers(0, 10, 800))
    cells = {"photo": [png(i) for i in images], "word": [f"this looks like {WORDS[k]} to me" for k in words]}
    cells = {name: [c if rng.random() < 0.75 else None for c in column] for name, column in cells.items()}
    return cells | {"label": [WORDS[k] for k in kinds], "split": split(800)}


def mixed() -> dict[str, list]:
    """The same, and with it the ink on the page, and whether the digit is even."""
    images, kinds = handwriting(800)
    return said() | {"ink": images.mean((1, 2)).tolist(), "parity": [("even", "odd")[k % 2] for k in kinds]}


def speech() -> dict[str, list]:
    """Spoken digits of four people."""
    if not SPOKEN.is_file():
        pytest.skip("the recordings of spoken digits are not on hand")
    found = pq.read_table(SPOKEN, columns=["audio", "digit"])
    found = found.filter(np.asarray(found["digit"]) < 5)
    order = np.random.default_rng(0).permutation(len(found))[:480]
    sounds, kinds = found["audio"].to_pylist(), found["digit"].to_pylist()
    return {"sound": [sounds[i] for i in order], "label": [WORDS[kinds[i]] for i in order], "split": split(len(order))}


def played() -> dict[str, list]:
    """Who went for which treasure."""
    world, rng = WORLDS["treasures"], np.random.default_rng(0)
    found = play(world, 300, world.player(300, rng), rng)
    cut = ("states", "actions", "rewards")
    cells = {name: [v[:n].tolist() for v, n in zip(found[name], found["steps"])] for name in cut}
    return cells | {"split": split(300)}


def clouds() -> dict[str, list]:
    """Balls and rods of points, turned anyhow."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 240)
    x = rng.normal(size=(240, 48, 3)) * np.where(kinds[:, None, None], [1.0, 1.0, 1.0], [0.2, 0.2, 1.6])
    turn = np.linalg.qr(rng.normal(size=(240, 3, 3)))[0]
    return {"cloud": (x @ turn).tolist(), "label": [("rod", "ball")[k] for k in kinds], "split": split(240)}


def scattered() -> dict[str, list]:
    """A bright or a dark block somewhere on a grey page."""
    rng = np.random.default_rng(0)
    pages, boxes = [], []
    for i in range(300):
        page, (x, y), (w, h) = rng.normal(128, 10, (32, 32)), rng.integers(0, 16, 2), rng.integers(8, 17, 2)
        page[y : y + h, x : x + w] = (10, 245)[i % 2]
        pages.append(png(page.clip(0, 255)))
        boxes.append(json.dumps([{"label": ("dark", "bright")[i % 2], "box": [int(v) for v in (x, y, x + w, y + h)]}]))
    return {"photo": pages, "blocks": boxes, "split": split(300)}


WORD, PAIR = {"word": "text"}, ["photo", "name"]
SAMPLES = [
    Sample({"image"}, True, "classify", digits, dict(target="label", epochs=5)),
    Sample({"audio"}, True, "classify", speech, dict(target="label", epochs=10)),
    Sample({"text"}, True, "classify", scripts, dict(target="label", kinds={"name": "text"}, epochs=20)),
    Sample({"image", "text"}, True, "classify", said, dict(target="label", kinds=WORD, epochs=12, lr=2e-3)),
    Sample(
        {"image", "text"},
        False,
        "retrieve",
        captions,
        dict(task="retrieve", inputs=PAIR, kinds={"name": "text"}, epochs=7, lr=3e-3),
    ),
    Sample({"image"}, False, "caption", captions, dict(task="caption", target="name", epochs=10, lr=2e-3)),
    Sample({"text"}, True, "write", sequels, dict(task="write", target="answer", kinds={"said": "text"}, epochs=12)),
    Sample({"points"}, True, "classify", clouds, dict(target="label", kinds={"cloud": "points"}, epochs=12)),
    Sample({"image"}, True, "detect", scattered, dict(task="detect", target="blocks", epochs=10)),
    Sample({"series"}, True, "act", played, dict(task="act", epochs=20)),
    Sample(
        {"image", "text", "number", "category"}, False, "classify", mixed, dict(target="label", kinds=WORD, epochs=5)
    ),
]
ALONE = [  # for systems that none of those is for
    Sample({"audio"}, False, "transcribe", speech, dict(task="transcribe", target="label", epochs=14, lr=4e-3)),
    Sample({"category"}, False, "generate", digits, dict(task="generate", target="photo", epochs=6)),
    Sample({"image"}, True, "pretrain", digits, dict(task="pretrain", inputs=["photo"], epochs=12)),
    Sample({"image"}, True, "restore", noisy, dict(task="restore", target="clear", epochs=12)),
]


# What stands between what is seen and what is said is learnt later here: so many times as many epochs.
LATE = {"idefics2": 3, "agentic_transformer": 3, "cct": 2, "vmoe": 2}


def samples(system: System) -> list[Sample]:
    tasks, takes = tasks_of(plait.model_info(system.name)), set(system.takes)
    fits = [s for s in SAMPLES if s.task in tasks and s.takes <= takes and (not s.exact or s.takes == takes)]
    return fits or [s for s in ALONE if s.task in tasks and s.takes <= takes]


CASES = [
    pytest.param(system.name, s, id=f"{system.name}-{s.task}") for system in systems().values() for s in samples(system)
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scores(name: str, table: dict[str, list], folder: Path, **options) -> list[tuple[Score, Score]]:
    """Train a toy; its scores on the test rows, each beside what no model scores."""
    usual = dict(
        system=f"{name}_toy", split="split", image_size=32, batch_size=32, lr=5e-3, precision="fp32", augment=0.0
    )
    run = plait.fit(pa.table(table), out=folder / "run", console=Console(quiet=True), **usual | options)
    found, chance = run.assessments["test"].scores, {s.name: s for s in run.assessments["test"].baseline}
    print(*(f"{name}: {s}, without a model {chance[s.name].value:.3f}" for s in found if s.name in chance), sep="\n")
    return [(s, chance[s.name]) for s in found if s.name in chance]


@pytest.mark.parametrize("name, sample", CASES)
def test_learns_from_a_real_sample(name, sample, tmp_path):
    late = {"epochs": LATE.get(name, 1) * sample.options["epochs"]}
    found = scores(name, sample.make(), tmp_path, **sample.options | late)
    told = (
        [pair for pair in found if "mean average precision" in pair[0].name] if sample.task == "retrieve" else found[:1]
    )
    assert told and all(better(score, chance) for score, chance in told)


def better(score: Score, chance: Score) -> bool:
    return score.low > chance.value if score.better == "higher" else score.high < chance.value


def translations() -> dict[str, list]:
    """Three digits in English, and the same ones in French."""
    french = "zéro un deux trois quatre cinq six sept huit neuf".split()
    drawn = np.random.default_rng(0).permutation(1000)[:480]
    digits_of = [[i // 100, i // 10 % 10, i % 10] for i in drawn]
    told = [[" ".join(words[d] for d in ds) for ds in digits_of] for words in (WORDS, french)]
    return {"english": told[0], "french": told[1], "split": split(480)}


@pytest.mark.parametrize("name", [n for n, s in systems().items() if s.takes == ("text",) and "embedder" in s.roles])
def test_learns_to_find_texts_by_texts(name, tmp_path):
    options = dict(task="retrieve", inputs=["english", "french"], kinds={"english": "text", "french": "text"})
    found = scores(name, translations(), tmp_path, **options, epochs=15)
    told = [pair for pair in found if "mean average precision" in pair[0].name]
    assert len(told) == 2 and all(better(score, chance) for score, chance in told)


@pytest.mark.parametrize("name, epochs, wanted", [("auto", 14, 0.75), ("clip", 40, 0.6)])
def test_learns_to_match(name, epochs, wanted, tmp_path):
    """Neither side tells anything alone: the pair does, once the two towers agree on what is the same thing."""
    options = dict(task="match", inputs=PAIR, kinds={"name": "text"}, epochs=epochs, patience=epochs, lr=3e-3)
    found = scores(name, captions(), tmp_path, **options)
    assert found[0][0].name == "AUROC" and found[0][0].low > wanted


def test_every_system_is_tested():
    assert {system.name for system in systems().values() if not samples(system)} == set()
