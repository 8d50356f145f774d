"""What a model cannot read it refuses by name, and computes nothing of it."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.catalog import systems
from plait.errors import PlaitError
from tests.contract.examples import SYSTEMS, example, run, toy

every_system = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS])


@torch.no_grad()
@every_system
@pytest.mark.parametrize("wrong", ["numbers", "one dimension"])
def test_masks_that_are_none_are_refused(system, wrong):
    """Numbers would be added to scores; one truth for all rows would be spread over the tokens."""
    model = toy(system).eval()
    batch = example(model)
    if not batch["keep"]:
        pytest.skip("reads nothing that has a mask")
    for slot, keep in batch["keep"].items():
        other = keep.float() if wrong == "numbers" else keep[:, 0]
        with pytest.raises(PlaitError, match="keep"):
            run(model, batch | {"keep": batch["keep"] | {slot: other}}, system)


@torch.no_grad()
@every_system
def test_names_that_no_slot_has_are_refused(system):
    model = toy(system).eval()
    batch = example(model)
    slot = model.takes[0] if hasattr(model, "takes") else None
    if slot is None or len(model.takes) == 1:
        pytest.skip("is handed its values without a name")
    batch[slot[:-1]] = batch.pop(slot)
    with pytest.raises(PlaitError, match=f"'{slot[:-1]}'"):
        run(model, batch, system)


@torch.no_grad()
@pytest.mark.parametrize("name", [f"{n}_toy" for n, s in systems().items() if s.takes == ("text",)])
@pytest.mark.parametrize("ids", [[[64] * 4], [[-1] * 4], [[1.0] * 4], [1] * 4])
def test_ids_that_no_word_has_are_refused(name, ids):
    with pytest.raises(PlaitError, match="got (ids|values)"):
        plait.create_model(name)(torch.tensor(ids))
