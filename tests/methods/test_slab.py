"""Layer norms that fade into batch norms, and attention at a linear cost."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.block import Attention
from plait.core.surgery import fold_norms
from plait.core.tokens import Tokens
from plait.methods.norms.slab import ProgressiveNorm, RepBatchNorm, SimpleLinearAttend, advance
from plait.methods.norms.unified_norm import Affine


def test_the_layer_norm_fades_linearly_and_evaluation_follows():
    norm = ProgressiveNorm(nn.LayerNorm(6), 4)
    norm.reset(), norm.batch.reset()
    for share in (0.75, 0.5, 0.25, 0.0, 0.0):
        for _ in (norm.train(), norm.eval()):
            x = torch.randn(5, 7, 6)
            parts = copy.deepcopy(norm)
            torch.testing.assert_close(norm(x), share * parts.norm(x) + (1 - share) * parts.batch(x))
        advance(norm)


@pytest.mark.parametrize("padded", [False, True])
def test_the_batch_norm_is_torchs_over_real_tokens_plus_a_shortcut(padded):
    ours, theirs = RepBatchNorm(6), nn.BatchNorm1d(6)
    ours.reset()
    with torch.no_grad():
        ours.eta.fill_(0.3), nn.init.normal_(ours.weight), theirs.weight.copy_(ours.weight)
    for _ in range(3):
        x, keep = torch.randn(4, 5, 6) + 1, torch.rand(4, 5) < 0.7
        keep = keep if padded else torch.ones_like(keep)
        real = x[keep]
        torch.testing.assert_close(
            ours(x, keep if padded else None)[keep], theirs(real) + 0.3 * real, rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x)[keep], theirs.eval()(real) + 0.3 * real, rtol=1e-5, atol=1e-5)


def trained(name, kernel, steps=3):
    """A toy after the whole schedule, on random inputs: statistics and weights away from their start."""
    model = plait.create_model(f"{name}_toy").train()
    plait.apply_method(model, "slab", steps=steps, kernel=kernel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.rand(8, 3, 32, 32) if "image" in model.takes else torch.randint(5, 64, (8, 12))
        model(x).square().sum().backward()
        optimizer.step()
        advance(model)
    return model.eval(), x


@pytest.mark.parametrize(("name", "kernel"), [("vit", 5), ("deit3", 3), ("swin", None), ("bert", None)])
def test_folded_it_answers_the_same(name, kernel):
    model, x = trained(name, kernel)
    model, x = model.double(), x.double() if x.is_floating_point() else x  # an identity, not what rounding makes of it
    with torch.no_grad():
        folded = fold_norms(copy.deepcopy(model))
        torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, (ProgressiveNorm, RepBatchNorm)) for m in folded.modules())
    if name in ("vit", "deit3"):  # nothing stands before a linear layer of a block any more; the last norm is a scale
        assert [n for n, m in folded.named_modules() if isinstance(m, (Affine, nn.LayerNorm))] == ["norm"]


def test_a_norm_that_has_not_faded_is_not_folded():
    model = plait.create_model("vit_toy").eval()
    plait.apply_method(model, "slab", steps=5)
    advance(model, 3)
    with pytest.raises(ValueError, match="step 4 of 5"):
        fold_norms(model)
    advance(model, 100)
    fold_norms(model)


def linear(kernel: int) -> Attention:
    """An attention with the method's seam."""
    mix = Attention(16, 2)
    mix.attend = SimpleLinearAttend(8, kernel)
    return mix


@torch.no_grad()
def test_linear_attention_is_its_formula_written_out():
    mix = linear(3)
    for p in mix.parameters():
        nn.init.normal_(p, std=0.5)
    keep = torch.arange(13)[None] < torch.tensor([[13], [9]])
    t = Tokens(torch.randn(2, 13, 16), grid=(3, 4), prefix=1, keep=keep)
    q, k, v = mix.project(t)
    maps = (q.relu() @ k.relu().mT).masked_fill(~keep[:, None, None], 0.0)
    v = v.masked_fill(~keep[:, None, :, None], 0.0)
    y = maps / (maps.sum(-1, keepdim=True) + 1e-6) @ v
    for h in range(2):
        near = F.conv2d(
            v[:, h, 1:].mT.reshape(2, 8, 3, 4), mix.attend.near.weight, mix.attend.near.bias, padding=1, groups=8
        )
        y[:, h, 1:] += near.flatten(2).mT
    torch.testing.assert_close(mix(t).x, mix.merge(t.replace(x=y)).x, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_its_cost_grows_with_the_tokens_not_with_their_square():
    mix, costs = linear(5), []
    for side in (8, 16, 32):
        with FlopCounterMode(display=False) as counter:
            mix(Tokens(torch.rand(1, side**2, 16), grid=(side, side)))
        costs.append(counter.get_total_flops())
    assert costs[1] == 4 * costs[0] and costs[2] == 16 * costs[0]


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="kernel=None"):
        plait.apply_method(plait.create_model("bert_toy"), "slab")
    with pytest.raises(ValueError, match="odd"):
        plait.apply_method(plait.create_model("vit_toy"), "slab", kernel=4)
    with pytest.raises(ValueError, match="one for each place"):
        linear(3)(Tokens(torch.zeros(1, 5, 16), grid=(2, 3)))
