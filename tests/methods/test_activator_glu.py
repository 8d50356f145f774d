"""Gated units in the place of attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import recorded
from plait.core.block import Attention, FeedForward
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.methods.attention.activator_glu import GatedTokens, GatedUnit


def test_the_unit_is_its_formula():
    unit, x = initialise(GatedUnit(6, 10)), torch.randn(3, 6)
    for p in unit.parameters():
        nn.init.normal_(p)

    def norm(y):
        y = y - y.mean(-1, keepdim=True)
        return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * unit.norm.weight + unit.norm.bias

    (w, u), (b, c) = unit.up.weight.chunk(2), unit.up.bias.chunk(2)
    want = (norm(F.gelu(x @ w.T + b)) * norm(x @ u.T + c)) @ unit.down.weight.T + unit.down.bias
    torch.testing.assert_close(unit(x), want, rtol=1e-5, atol=1e-5)


def test_every_token_hears_every_other_and_channels_keep_apart():
    mixer, x = initialise(GatedTokens(9, 18)), torch.randn(1, 9, 5)
    nn.init.normal_(mixer.unit.up.weight)
    nn.init.normal_(mixer.unit.down.weight)
    moves = torch.autograd.functional.jacobian(lambda y: mixer(Tokens(y)).x, x)[0, :, :, 0]  # (9, 5, 9, 5): out by in
    own = moves.diagonal(dim1=1, dim2=3)
    assert (own.abs() > 1e-7).float().mean() == 1
    assert moves.count_nonzero() == own.count_nonzero()


def test_a_model_without_attention():
    model, x = plait.create_model("vit_toy").eval(), torch.rand(2, 3, 32, 32)
    before = model(x)
    undo = plait.apply_method(model, "activator_glu", feeds=True)
    assert not any(isinstance(m, (Attention, FeedForward)) for m in model.modules())
    watched, maps = recorded(model)
    other = x.clone()
    other[0, :, :8, :8] += 1  # one patch of the first picture
    a, b = watched.tokens(x).x, watched.tokens(other).x
    assert not maps and ((a[0] - b[0]).abs().amax(-1) > 0).all() and torch.equal(a[1], b[1])
    undo()
    assert torch.equal(model(x), before)


def test_it_costs_less_than_attention_of_the_same_width():
    def cost(f, n=197, width=768):
        with FlopCounterMode(display=False) as counter, torch.device("meta"):
            f()(Tokens(torch.empty(1, n, width)))
        return counter.get_total_flops()

    attention, gated = cost(lambda: Attention(768, 12)), cost(lambda: GatedTokens(197, 394))
    assert gated == 2 * 768 * 197 * 394 * 3 and gated < 0.4 * attention


def test_one_number_of_tokens_is_read():
    model = plait.create_model("bert_toy")
    with pytest.raises(ValueError, match="give tokens="):
        plait.apply_method(model, "activator_glu")
    plait.apply_method(model, "activator_glu", tokens=12)
    ids, keep = torch.randint(5, 64, (2, 12)), torch.ones(2, 12, dtype=torch.bool)
    keep[1, 8:] = False
    assert model.eval()(ids, keep).isfinite().all()
    torch.testing.assert_close(model(ids, keep), model(ids.masked_fill(~keep, 9), keep), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="got 11 tokens, expected 12"):
        model(ids[:, :11], keep[:, :11])
    with pytest.raises(ValueError, match="weigh the same"):
        GatedTokens(3, 6)(Tokens(torch.zeros(1, 3, 4), weight=torch.ones(1, 3)))
    with pytest.raises(ValueError, match="looks ahead"):
        plait.apply_method(plait.create_model("clip_toy").towers["text"], "activator_glu", tokens=17)
