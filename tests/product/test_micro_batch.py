"""`--micro-batch`: the run of the whole batch, read some rows at a time; and where pieces do not add up to a batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import plait
from plait.core.weight_files import read_weights
from plait.errors import UsageError
from plait.runs.console import Console
from tests.runs.tables import table

HOW = dict(
    inputs=["photo", "note"], epochs=2, batch_size=16, precision="fp32", augment=0.5, console=Console(quiet=True)
)


def fitted(folder: Path, task: str = "retrieve", system: str = "clip_toy", **how) -> Path:
    given = table(("image", "text"), 48)
    plait.fit(given.select(["photo", "note"]), task=task, system=system, out=folder, **HOW | how)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(read_weights(folder / "model.safetensors").items())


@pytest.mark.parametrize("task", ["retrieve", "match"])
def test_a_run_in_pieces_is_the_run_of_the_whole_batch(task, tmp_path):
    """As near as sums in another order are, after all its steps; and far from batches of the pieces' size."""
    whole, pieces = fitted(tmp_path / "whole", task), fitted(tmp_path / "pieces", task, micro_batch=5)
    other = fitted(tmp_path / "other", task, batch_size=5)
    a, b, c = map(weights, (whole, pieces, other))
    far = [max(float((x - y[k]).abs().max()) for k, x in a.items() if x.is_floating_point()) for y in (b, c)]
    assert 0 < far[0] < 2e-4 < 1e-3 < far[1]


def test_a_run_in_pieces_goes_on_bit_for_bit(tmp_path):
    how = dict(micro_batch=5, checkpoint_seconds=0.0)
    whole = fitted(tmp_path / "whole", **how)
    part = shutil.copytree(whole, tmp_path / "part")
    (part / "model.safetensors").unlink()
    for old in sorted((part / "checkpoints").iterdir())[1:]:
        shutil.rmtree(old)
    assert len(list((part / "checkpoints").iterdir())) == 1
    given = table(("image", "text"), 48).select(["photo", "note"])
    plait.fit(given, out=part, resume=True, console=HOW["console"])
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="micro_batch cannot be given with --resume"):
        plait.fit(given, out=part, resume=True, micro_batch=4, console=HOW["console"])


def test_what_pieces_do_not_add_up_to_is_refused(tmp_path):
    given = table(("image", "text"), 48)
    rows = given.select(["photo", "note", "label"])
    how = HOW | dict(micro_batch=4, folds=1)
    with pytest.raises(UsageError, match="retrieve, and match by vectors; in classification the loss of its rows"):
        plait.fit(rows, target="label", system="auto_toy", out=tmp_path / "a", **how)
    with pytest.raises(UsageError, match="in matching the loss of its rows"):
        fitted(tmp_path / "b", "match", "vilt_toy", micro_batch=4)
    with pytest.raises(UsageError, match="own loss reads a batch as a whole"):
        fitted(tmp_path / "c", "retrieve", "albef_toy", micro_batch=4)
    with pytest.raises(UsageError, match="BatchNorm2d.*another batch"):
        fitted(tmp_path / "d", "retrieve", "mobileclip_toy", micro_batch=4)
    with pytest.raises(UsageError, match="micro_batch must be above 0"):
        fitted(tmp_path / "e", micro_batch=0)
