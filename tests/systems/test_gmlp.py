"""gMLP: the gate begins open, and what it learns mixes the tokens."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.gmlp import GatedFeed, SpatialGate
from tests.parity.compare import perturb


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


@torch.no_grad()
def test_a_thin_head_of_attention_joins_the_gate():
    """As the paper's pseudo-code has it, and lucidrains/g-mlp-pytorch."""
    layer, x = perturb(initialise(GatedFeed(8, 12, 5, thin=4))), torch.randn(2, 5, 8)
    q, k, v = (x @ w.T for w in layer.tiny.qkv.weight.split(4))
    seen = torch.softmax(q @ k.mT / 2, -1) @ v @ layer.tiny.out.weight.T + layer.tiny.out.bias
    value, gate = torch.nn.functional.gelu(layer.up(x)).chunk(2, -1)
    gate = layer.gate.weight @ layer.gate.norm(gate) + layer.gate.bias[:, None] + seen
    torch.testing.assert_close(layer(Tokens(x)).x, layer.down(value * gate))


def test_amlp_attends_by_one_head_in_each_layer():
    model = plait.create_model("gmlp_toy", thin=16).eval()
    watched, maps = recorded(model)
    watched(torch.rand(2, 3, 32, 32))
    assert model.attends and [tuple(m.shape) for m in maps] == [(2, 1, 16, 16)] * 2
    assert not plait.create_model("gmlp_toy").attends
    model(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="got pictures of 64 x 32, expected 32 x 32"):
        plait.create_model("gmlp_toy")(torch.rand(1, 3, 64, 32))


@pytest.mark.parametrize("size, millions", [("ti16_224", 5.87), ("s16_224", 19.42), ("b16_224", 73.08)])
def test_sizes_are_those_of_timm(size, millions):
    assert round(plait.model_info(f"gmlp_{size}").parameters / 1e6, 2) == millions
