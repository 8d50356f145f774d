"""Attention that tends to a doubly stochastic matrix."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.methods.attention.sinkformer import sinkhorn


def test_one_step_is_softmax():
    model, x = plait.create_model("vit_toy").eval(), torch.rand(2, 3, 32, 32)
    plain = model(x)
    plait.apply_method(model, "sinkformer", steps=1)
    torch.testing.assert_close(model(x), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_many_steps_are_doubly_stochastic(spread):
    scores = spread * torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    maps = sinkhorn(scores, 2001)
    assert (maps.sum(-1) - 1).abs().max() < 1e-5 and (maps.sum(-2) - 1).abs().max() < 1e-4
    assert (sinkhorn(scores, 1).sum(-2) - 1).abs().max() > 0.1


def test_padding_stays_out_of_both_sums():
    scores, keep = torch.randn(1, 2, 6, 6), torch.tensor([[True] * 4 + [False] * 2])
    maps = sinkhorn(scores, 301, (keep[:, :, None] & keep[:, None])[:, None])
    assert maps[..., 4:, :].abs().max() == 0 and maps[..., :, 4:].abs().max() == 0
    torch.testing.assert_close(maps[..., :4, :4], sinkhorn(scores[..., :4, :4], 301), rtol=1e-5, atol=1e-6)


def test_its_maps_are_recorded():
    model = plait.create_model("vit_toy").eval()
    plait.apply_method(model, "sinkformer", steps=101)
    watched, maps = recorded(model)
    watched(torch.rand(1, 3, 32, 32))
    assert len(maps) and all((m.sum(-2) - 1).abs().max() < 1e-3 for m in maps)
    with pytest.raises(ValueError, match="odd"):
        plait.apply_method(plait.create_model("vit_toy"), "sinkformer", steps=2)
