"""A few learned tokens that read many."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plait.core.init import initialise
from plait.core.memory import Page
from plait.core.tokens import Tokens
from plait.parts.resampler import LatentAttention, Resampler
from tests.parity.compare import perturb


@pytest.fixture
def made():
    return perturb(initialise(Resampler(3, 16, 2, 4, 32, kv_heads=2, head_width=6)))


@torch.no_grad()
def test_as_many_tokens_come_out_whatever_their_number_and_order(made):
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    out = made(Tokens(x))
    assert out.x.shape == made(Tokens(x[:, :2])).x.shape == (2, 3, 16)
    torch.testing.assert_close(made(Tokens(x.flip(1))).x, out.x, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made(Tokens(x[:, :6])).x, out.x, atol=1e-3)


@torch.no_grad()
def test_tokens_that_are_not_real_are_not_heard_and_one_that_weighs_two_is_two(made):
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    keep = torch.arange(7).expand(2, 7) < 5
    torch.testing.assert_close(made(Tokens(x, keep=keep)).x, made(Tokens(x[:, :5])).x, rtol=1e-5, atol=1e-5)
    weight = torch.tensor([[2.0, 1, 1, 1, 1, 1, 1]]).expand(2, 7)
    twice = torch.cat([x[:, :1], x], 1)
    torch.testing.assert_close(made(Tokens(x, weight=weight)).x, made(Tokens(twice)).x, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_layer_is_softmax_attention_to_the_stream_and_itself():
    layer = perturb(initialise(LatentAttention(8, 2, kv_heads=1, norm=nn.LayerNorm)))
    g = torch.Generator().manual_seed(0)
    x, seen = torch.randn(1, 3, 8, generator=g), torch.randn(1, 5, 8, generator=g)
    got = layer(Tokens(x).reading(stream=Tokens(seen))).x[0]
    k, v = layer.kv(torch.cat([layer.norm(seen), x], 1))[0].chunk(2, 1)  # one head of both, for all queries
    heads = [torch.softmax(q @ k.T / 2, 1) @ v for q in layer.q(x)[0].chunk(2, 1)]
    torch.testing.assert_close(got, layer.out(torch.cat(heads, 1)), rtol=1e-5, atol=1e-5)


def test_it_refuses_a_memory_and_heads_that_do_not_divide():
    layer = initialise(LatentAttention(8, 2))
    t = Tokens(torch.zeros(1, 3, 8), memory=Page({})).reading(stream=Tokens(torch.zeros(1, 5, 8)))
    with pytest.raises(ValueError, match="memory"):
        layer(t)
    with pytest.raises(ValueError, match="heads"):
        LatentAttention(8, 3)
