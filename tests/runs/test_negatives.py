"""A column of what does not answer its row: how it is read, which rows it is wrong for, and that it is learnt from."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import plait
from plait.core.weight_files import read_weights
from plait.errors import DataError, UsageError
from plait.runs.console import Console
from plait.runs.prepare import prepare
from plait.runs.settings import Settings
from plait.tasks.retrieve import MINED, PAIR
from tests.runs.tables import table

QUIET = Console(quiet=True)
HOW = dict(task="retrieve", inputs=["asks", "says"], negative="wrong", system="sentence_encoder_toy")


def rows(n: int = 40) -> dict[str, list]:
    """Row i asks for thing i; what is wrong for it answers the next one, but is missing in row 3, nobody's in row 4 and
    its own answer in row 5."""
    says = [f"it is number{i} of the {('red', 'blue')[i % 2]} ones" for i in range(n)]
    wrong: list[str | None] = [says[(i + 1) % n] for i in range(n)]
    wrong[3], wrong[4], wrong[5] = None, "nobody asks for that", says[5]
    asks = [f"where is number{i}" for i in range(n)]
    return {"asks": asks, "says": says, "wrong": wrong, "split": ["val" if i % 8 == 7 else "train" for i in range(n)]}


def fitted(folder: Path, given: dict, **how) -> Path:
    plait.fit(
        pa.table(given),
        out=folder,
        split="split",
        epochs=2,
        batch_size=16,
        precision="fp32",
        console=QUIET,
        kinds={"asks": "text", "says": "text"},
        **HOW | how,
    )
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: x for k, x in read_weights(folder / "model.safetensors").items() if x.is_floating_point()}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((x - b[k]).abs().max()) for k, x in a.items())


def test_it_is_read_as_the_column_that_answers():
    ready = prepare(pa.table(rows()), Settings(**HOW, split="split", kinds={"asks": "text", "says": "text"}), QUIET)
    assert {c.name: c.use for c in ready.schema.columns}["wrong"] == "negative"
    batch = ready.rows.batch(np.arange(7))
    answers = ready.task.sides[1]
    wrong, next_ones = batch["negative"][answers], ready.rows.batch(np.arange(1, 8))[answers]
    longest = min(wrong.shape[1], next_ones.shape[1])
    assert torch.equal(wrong[[0, 1, 2, 6], :longest], next_ones[[0, 1, 2, 6], :longest])
    assert batch["negative"]["present"][answers].tolist() == [True, True, True, False, True, True, True]
    group, mined = batch["target"][PAIR][:, 0], batch["target"][MINED]
    assert mined[:3].tolist() == group[1:4].tolist()
    assert mined[3] == mined[4] == -1 and mined[5] == group[5]


def test_it_is_learnt_from(tmp_path):
    given = rows()
    whole, none = fitted(tmp_path / "whole", given), fitted(tmp_path / "none", given, negative=None)
    other = fitted(tmp_path / "other", given | {"wrong": given["wrong"][::-1]})
    assert apart(weights(whole), weights(none)) > 1e-3 < apart(weights(whole), weights(other))
    run = plait.load(whole)
    assert run.embed(pa.table({"asks": given["asks"][:2]})).num_rows == 2  # nobody need give it again


def test_in_pieces_it_has_the_same_gradient(tmp_path):
    """Both of what answers and of what does not."""
    run = plait.load(fitted(tmp_path / "run", rows()))
    ready = prepare(pa.table(rows()), Settings(**HOW, split="split", kinds={"asks": "text", "says": "text"}), QUIET)
    batch, found = ready.rows.batch(np.arange(16)), {}
    for size in (None, 5):
        run.model.zero_grad()
        run.model.micro_batch = size
        loss = run.model(batch, torch.Generator())["mined"]
        loss.backward()
        found[size] = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])
    assert float((found[5] - found[None]).norm() / found[None].norm()) < 1e-5 and found[None].norm() > 1e-3


def test_a_run_goes_on_with_it_bit_for_bit_and_not_with_another(tmp_path):
    whole = fitted(tmp_path / "whole", rows(), checkpoint_seconds=0.0)
    part = shutil.copytree(whole, tmp_path / "part")
    (part / "model.safetensors").unlink()
    for old in sorted((part / "checkpoints").iterdir())[1:]:
        shutil.rmtree(old)
    with pytest.raises(DataError, match="negatives"):
        plait.fit(pa.table(rows() | {"wrong": rows()["wrong"][::-1]}), out=part, resume=True, console=QUIET)
    plait.fit(pa.table(rows()), out=part, resume=True, console=QUIET)
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_pictures_can_be_wrong(tmp_path):
    given = table(("image", "text"), 24)
    given = given.append_column("other", given["photo"].combine_chunks().take(pa.array(np.arange(24)[::-1].copy())))
    how = dict(task="retrieve", inputs=["photo", "note"], negative="other", system="clip_toy", epochs=1, batch_size=8)
    run = plait.fit(given, out=tmp_path / "run", console=QUIET, augment=0.5, **how)
    column = run.schema.column("other")
    assert column.kind == "image" and column.use == "negative" and column.style["like"] == "photo"


@pytest.mark.parametrize(
    "how, told",
    [
        (dict(task="classify", target="says", inputs=["asks"], system="bert_toy"), "negatives are for"),
        (dict(negative="wron"), "wron"),
    ],
)
def test_what_cannot_be_is_said(how, told, tmp_path):
    given = rows() | {"says": ["a", "b"] * 20 if "target" in how else rows()["says"]}
    with pytest.raises(UsageError, match=told):
        plait.fit(pa.table(given), out=tmp_path / "run", console=QUIET, **HOW | how)
