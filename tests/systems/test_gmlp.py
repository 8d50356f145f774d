"""gMLP: the gate begins open, and what it learns mixes the tokens."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.init import initialise
from plait.systems.vision.gmlp import SpatialGate


@torch.no_grad()
def test_a_gate_begins_as_the_identity_on_the_half_it_gates():
    gate = initialise(SpatialGate(24, 49))
    x = torch.randn(2, 49, 48)
    torch.testing.assert_close(gate(x), x[..., :24], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tokens_meet_in_the_gate_alone():
    gate, x = initialise(SpatialGate(6, 9)), torch.randn(1, 9, 12)
    gate.weight.copy_(torch.eye(9)[torch.arange(9).roll(1)])  # each token is gated by its neighbour
    gate.bias.zero_()
    torch.testing.assert_close(gate(x), x[..., :6] * gate.norm(x[..., 6:]).roll(1, 1))


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="got pictures of 64 x 32, expected 32 x 32"):
        plait.create_model("gmlp_toy")(torch.rand(1, 3, 64, 32))


@pytest.mark.parametrize("size, millions", [("ti16_224", 5.87), ("s16_224", 19.42), ("b16_224", 73.08)])
def test_sizes_are_those_of_timm(size, millions):
    assert round(plait.model_info(f"gmlp_{size}").parameters / 1e6, 2) == millions
