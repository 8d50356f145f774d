"""Sparse upcycling: it starts as the dense model, and the experts then part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import plait
from plait.parts.experts import MixtureOfExperts
from tests.parity.compare import perturb

SIZE = dict(depth=4, width=32, heads=2)


def dense(seed: int = 0):
    return perturb(plait.create_model("vit_toy", seed=seed, **SIZE))


def mixtures(model) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, MixtureOfExperts)]


@torch.no_grad()
@pytest.mark.parametrize("chosen", [1, 2, 8])
def test_it_starts_as_the_dense_model(chosen):
    model, x = dense(), torch.rand(3, 3, 32, 32)
    before = model(x)
    undo = plait.apply_method(model, "sparse_upcycling", chosen=chosen)
    torch.testing.assert_close(model.eval()(x), before, rtol=1e-5, atol=1e-5)
    undo()
    assert torch.equal(model(x), before)


def test_every_second_step_of_the_last_half_is_a_mixture_and_a_causal_one_is_not():
    model = dense()
    plait.apply_method(model, "sparse_upcycling", last=1.0)
    assert mixtures(model) == ["stack.blocks.1.feed.f", "stack.blocks.3.feed.f"]
    model = dense()
    plait.apply_method(model, "sparse_upcycling")
    assert mixtures(model) == ["stack.blocks.3.feed.f"]
    clip = plait.create_model("clip_toy")
    plait.apply_method(clip, "sparse_upcycling", last=1.0)
    found = mixtures(clip)
    assert found and not [name for name in found if name.startswith("text")]
    with pytest.raises(ValueError, match="no FeedForward that could be changed"):
        plait.apply_method(plait.create_model("decision_transformer_toy"), "sparse_upcycling")


def test_experts_that_were_alike_part_in_training():
    torch.manual_seed(0)
    model, x, y = dense(), torch.rand(8, 3, 32, 32), torch.arange(8)
    plait.apply_method(model, "sparse_upcycling", experts=4, chosen=1)
    best = torch.optim.Adam(model.train().parameters(), 1e-3)
    for _ in range(5):
        t = model.tokens(x)
        loss = F.cross_entropy(model.head(model.pool(t)), y) + sum(t.losses.values())
        best.zero_grad()
        loss.backward()
        best.step()
    (mixture,) = (m for m in model.modules() if isinstance(m, MixtureOfExperts))
    up = mixture.experts.up.detach()
    assert all(float((up[i] - up[0]).abs().max()) > 1e-4 for i in range(1, 4))
    assert mixture.router.score.weight.grad.abs().sum() > 0
