"""TokenFormer beyond its parity: what Pattention is, what of a head is turned, and what it starts with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import plait
from plait.core.tokens import Tokens
from plait.parts.mixers.pattention import Pattention
from tests.parity.compare import perturb, relative_error


def layer(**options) -> Pattention:
    torch.manual_seed(0)
    made = Pattention(8, 12, 6, key_std=1.0, value_std=1.0, **options)
    made.reset()
    return made


@torch.no_grad()
def test_scores_are_brought_to_a_length_before_they_pass_through_gelu():
    p, x = layer(), torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    scores = torch.einsum("bnd,kd->bnk", x, p.keys.weight)
    a = scores / scores.square().sum(-1, keepdim=True).sqrt() * math.sqrt(12)
    want = torch.einsum("bnk,ok->bno", a * 0.5 * (1 + torch.erf(a / math.sqrt(2))), p.values.weight)
    assert relative_error(p(Tokens(x)).x, want) < 1e-6
    assert relative_error(p(Tokens(7 * x)).x, want) < 1e-6  # how long a token is says nothing
    assert relative_error(layer(length=48)(Tokens(x)).x, want) > 0.1
    assert not p(Tokens(torch.zeros(1, 1, 8))).x.any()


@torch.no_grad()
@pytest.mark.parametrize("kind, near", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_the_length_is_taken_in_float32(kind, near):
    p, x = layer(), 400 * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))  # squares leave float16
    got = p.to(kind)(Tokens(x.to(kind))).x
    assert got.dtype == kind
    assert relative_error(got.float(), layer()(Tokens(x)).x) < near


@torch.no_grad()
def test_a_quarter_of_each_head_is_turned_and_only_differences_count():
    model = perturb(plait.create_model("tokenformer_toy", seed=1))
    ids = torch.randint(4, 64, (2, 10), generator=torch.Generator().manual_seed(0))
    want, x = model(ids), model.embed(ids)
    told = model.read(Tokens(x, pos=torch.arange(10) + 3))
    torch.testing.assert_close(model.say(told), want, rtol=1e-4, atol=1e-5)
    assert relative_error(model.say(model.read(Tokens(x, pos=2 * torch.arange(10)))), want) > 1e-3
    mix = model.stack.blocks[0].mix.f
    near, far = (mix.project(Tokens(x, pos=model.rotary(torch.arange(10) + n))) for n in (0, 5))
    for a, b in zip(near[:2], far[:2]):  # heads of 16 numbers
        assert torch.equal(a[..., 4:], b[..., 4:])
        assert ((a[..., :4] - b[..., :4]).abs().amax((0, 1, 2)) > 1e-3).all()
    assert torch.equal(near[2], far[2])


@torch.no_grad()
def test_it_has_no_weights_but_tokens_words_and_one_norm_and_starts_as_published():
    model = plait.create_model("tokenformer_nano", seed=0)
    kinds = {type(m) for m in model.modules() if list(m.parameters(recurse=False))}
    assert kinds == {nn.Embedding, nn.Linear, nn.LayerNorm}
    assert [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m.weight is not None] == ["norm"]
    for p in (m for m in model.modules() if isinstance(m, Pattention)):
        assert float(p.keys.weight.std()) == pytest.approx(0.02, rel=0.02)
        assert float(p.values.weight.std()) == pytest.approx(2 / 4 / 192**0.5, rel=0.02)
    assert float(model.words.table.weight.std()) == pytest.approx(0.02, rel=0.02)
