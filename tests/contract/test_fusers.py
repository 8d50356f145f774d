"""What a system that fuses promises of its parts: each is its own slot's alone, and a hidden slot is absent from the
fusion only."""

from __future__ import annotations

import pytest
import torch

from tests.contract.examples import SYSTEMS, example, toy

FUSERS = [pytest.param(s, id=s.name) for s in SYSTEMS if "fuser" in s.roles and toy(s).part_widths]
every_fuser = pytest.mark.parametrize("system", FUSERS)


@torch.no_grad()
@every_fuser
def test_a_hidden_slot_is_absent_from_the_fusion_and_answers_for_itself(system):
    model = toy(system).eval()
    batch = example(model)
    whole = model.fuse(batch)
    for slot in model.takes:
        left = {**batch["present"], slot: torch.zeros_like(batch["present"][slot])}
        hidden, absent = model.fuse({**batch, "visible": left}), model.fuse({**batch, "present": left})
        torch.testing.assert_close(hidden["fused"], absent["fused"], msg=lambda m, s=slot: f"{s}: {m}")
        assert not torch.allclose(hidden["fused"], whole["fused"]), f"the fusion does not see {slot}"
        assert torch.equal(hidden["parts"][slot], whole["parts"][slot]) and not absent["parts"][slot].any()


@torch.no_grad()
@every_fuser
def test_a_part_knows_its_own_slot_alone(system):
    model = toy(system).eval()
    batch, other = example(model), example(model, seed=1)
    whole = model.fuse(batch)["parts"]
    for slot in model.takes:
        changed = {**batch, slot: other[slot]}
        parts = model.fuse(changed)["parts"]
        assert not torch.equal(parts[slot], whole[slot])
        assert all(torch.equal(parts[s], whole[s]) for s in model.takes if s != slot), f"{slot} leaks into another part"
