"""`fit --task answer`: questions about pictures, answered in words, and out of a closed list."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

import plait
from plait.errors import UsageError
from plait.runs.console import Console
from tests.product.test_caption import COLOURS, PLACES, png

ASKS = {"which colour is it": 0, "where is it": 1}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(n: int, seed: int = 0) -> dict[str, list]:
    """A square of some colour at some place, on noise, and one of two questions about it."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {"photo": [], "question": [], "said": [], "split": []}
    for i in range(n):
        told, question = (rng.choice(list(COLOURS)), rng.choice(list(PLACES))), rng.choice(list(ASKS))
        pixels = rng.integers(90, 130, (32, 32, 3)).astype(np.uint8)
        pixels[12:21, slice(*PLACES[told[1]])] = COLOURS[told[0]]
        rows["photo"].append(png(pixels))
        rows["question"].append(str(question))
        rows["said"].append(str(told[ASKS[question]]))
        rows["split"].append("test" if i % 5 == 0 else "val" if i % 5 == 1 else "train")
    return rows


def test_questions_are_answered_freely_and_out_of_a_list(tmp_path):
    rows = table(400)
    how = dict(task="answer", target="said", system="albef_toy", split="split", image_size=32, precision="fp32")
    kinds = {"question": "text"}
    run = plait.fit(
        pa.table(rows), out=tmp_path / "run", console=Console(quiet=True),
        **how | dict(kinds=kinds, augment=0.0, batch_size=32, epochs=24, lr=3e-3),
    )  # fmt: skip
    found, usual = run.assessments["test"].scores[0], run.assessments["test"].baseline[0]
    assert found.name == "exact match" and found.low > usual.value
    fresh, loaded = table(60, seed=9), plait.load(tmp_path / "run")
    asked = pa.table({k: fresh[k] for k in ("photo", "question")})
    free, listed = loaded.predict(asked), loaded.named([*COLOURS, *PLACES])
    closed = listed.predict(asked)
    right = [np.mean([a == b for a, b in zip(t["said"].to_pylist(), fresh["said"])]) for t in (free, closed)]
    print(found, usual, right)
    assert right[0] > 0.4 and right[1] >= right[0] - 0.05
    assert set(closed["said"].to_pylist()) <= {*COLOURS, *PLACES}
    sure = closed["probability"].to_pylist()
    assert all(1 / 7 <= p <= 1 for p in sure)  # the likeliest of seven
    places = loaded.named([*PLACES]).predict(asked)["said"].to_pylist()
    assert set(places) <= set(PLACES)  # also where a colour is asked for
    assert listed.evaluate(pa.table({k: fresh[k] for k in ("photo", "question", "said")})).scores[0].n == 60
    assert json.loads((tmp_path / "run" / "config.json").read_text())["task"] == {"task": "answer"}
    with pytest.raises(UsageError, match="templates"):
        loaded.named(["red", "green"], templates=["a {}"])
    with pytest.raises(UsageError, match="longer than"):
        loaded.named(["red", "a colour that is nowhere near what was asked for " * 3])
