"""Somebody watching: hooks fire with and without gradients, on what was computed."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.recompute import recompute
from plait.errors import PlaitError


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("where", ["up", "act", "down", "drop"])
def test_every_part_of_a_feed_forward_step_is_heard(gradients, where):
    model, seen = plait.create_model("vit_toy").eval(), []
    feed = model.stack.blocks[0].feed.f
    getattr(feed, where).register_forward_hook(lambda _, given, made: seen.append((given[0].clone(), made.clone())))
    with torch.set_grad_enabled(gradients):
        model(torch.rand(2, 3, 32, 32))
    ((given, made),) = seen
    torch.testing.assert_close(made, getattr(feed, where).forward(given))


def test_reentrant_recomputation_is_refused_by_torchs_way_and_works_by_ours():
    """torch's loses the gradients of all before it, as what flows is no bare tensor."""
    model, x = plait.create_model("vit_toy"), torch.rand(2, 3, 32, 32)
    model(x).sum().backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    undo = recompute(model, reentrant=True)
    model(x).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], rtol=1e-5, atol=1e-6)
    undo()
    block = model.stack.blocks[0]
    forward = block.forward
    block.forward = lambda t: torch.utils.checkpoint.checkpoint(forward, t, use_reentrant=True)
    with pytest.raises(PlaitError, match="use_reentrant=False, or plait.core.recompute.recompute"):
        model(x)


def test_an_unknown_argument_is_told_all_that_there_are():
    with pytest.raises(PlaitError, match="its arguments are .*image.*num_classes"):
        plait.create_model("vit_tiny_patch16_224", channels=1)
