"""What every system that acts promises, checked on its toy: nobody acts on what comes later."""

from __future__ import annotations

import pytest
import torch

from tests.contract.examples import SYSTEMS, example, toy

every_policy = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS if "policy" in s.roles])


def cut(batch: dict, count: int) -> dict:
    """The first `count` steps."""
    keep = {slot: k[:, :count] for slot, k in batch["keep"].items()}
    return {**batch, **{slot: batch[slot][:, :count] for slot in keep}, "keep": keep}


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@every_policy
def test_an_action_follows_from_its_state_and_what_came_before(system):
    model = toy(system).eval()
    batch = example(model)
    whole = model.act(batch)["actions"]
    assert whole.shape == batch["actions"].shape
    for count in (1, 7, 16):
        close(model.act(cut(batch, count))["actions"], whole[:, :count])
    last = cut(batch, 7)
    undone = {
        **last,
        "actions": last["actions"][:, :6],
        "keep": {**last["keep"], "actions": last["keep"]["actions"][:, :6]},
    }
    close(model.act(undone)["actions"][:, 6], whole[:, 6])  # the action of this step is not there yet


@torch.no_grad()
@every_policy
@pytest.mark.parametrize("slot, from_step", [("states", 7), ("returns", 7), ("actions", 8)])
def test_an_action_depends_on_each_thing_from_its_step_on(system, slot, from_step):
    model = toy(system).eval()
    batch = example(model)
    changed = batch[slot].clone()
    changed[:, 7] += 1.0
    off = (model.act({**batch, slot: changed})["actions"] - model.act(batch)["actions"]).abs().amax((0, 2))
    assert float(off[:from_step].max()) == 0 and float(off[from_step]) > 1e-4


@torch.no_grad()
@every_policy
def test_steps_say_where_in_an_episode_it_is_and_there_are_only_so_many(system):
    model = toy(system).eval()
    batch = example(model)
    count = batch["states"].shape[1]
    steps = torch.arange(count).expand(3, -1)
    close(model.act({**batch, "steps": steps})["actions"], model.act(batch)["actions"])
    assert not torch.allclose(model.act({**batch, "steps": steps + 9})["actions"], model.act(batch)["actions"])
    long = {slot: batch[slot][:, :1].expand(-1, model.length + 1, -1) for slot in model.takes}
    with pytest.raises(ValueError, match="steps"):
        model.act(long)
