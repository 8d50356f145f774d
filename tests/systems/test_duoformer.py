"""DuoFormer's own claims: local attention is dense attention under a mask; a place owns those beneath it; one scale is
a hybrid ViT."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.core.attend import attend


def moved(**arguments) -> nn.Module:
    """The toy with norms, biases, tokens and positions away from where they start."""
    model = plait.create_model("duoformer_toy", **arguments).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g) * (p.dim() == 1 or p.abs().max() < 0.1))
    return model


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("scales", [1, 2])
def test_scale_attention_is_dense_attention_under_a_block_diagonal_mask(scales):
    model = moved(scales=scales, depth=3)
    cnn, local = model.patch_embed.stem
    t = local.places(cnn(picture()))
    each = t.x.shape[1]
    assert t.x.shape == (2 * 24, {1: 2, 2: 6}[scales], 32)
    x = t.x.view(2, 24 * each, 32)  # all tokens of a picture in one sequence
    mask = torch.block_diag(*[torch.ones(each, each, dtype=torch.bool)] * 24).expand(2, -1, -1)
    for block in local.stack.blocks:
        attention = block.mix.f
        q, k, v = attention.project(t.replace(x=block.mix.norm(x)))
        x = block.feed(t.replace(x=x + attention.merge(t.replace(x=attend(q, k, v, keep=mask))).x)).x
    found = local.stack(t).x.view(2, 24 * each, 32)
    assert float((found - x).abs().max() / x.abs().max()) < 1e-6
    assert not torch.allclose(found, t.x.view_as(found), atol=1e-2)


def test_a_place_owns_the_places_beneath_it():
    local = plait.create_model("duoformer_nano").eval().patch_embed.stem[1]
    maps = [torch.randn(1, c, 8 >> i, 12 >> i, requires_grad=True) for i, c in enumerate((32, 64, 128))]
    t = local(maps)
    assert t.grid == (2, 3) and t.x.shape == (1, 6, 96)
    for row in range(2):
        for column in range(3):
            grads = torch.autograd.grad(t.x[0, 3 * row + column].square().sum(), maps, retain_graph=True)
            for i, g in enumerate(grads):
                side, touched = 4 >> i, g[0].abs().sum(0) > 0
                assert touched[row * side : (row + 1) * side, column * side : (column + 1) * side].all()
                assert int(touched.sum()) == side**2


@torch.no_grad()
def test_with_one_scale_it_is_a_hybrid_vit():
    """A convolutional network, a token made of each place alone, a class token, positions and torch's own attention
    among all."""
    model = moved(scales=1, depth=2, image=(32, 48))
    cnn, local = model.patch_embed.stem
    coarse = cnn(picture())[-1]  # (B, C, 4, 6)
    places = [local([coarse[:, :, i : i + 1, j : j + 1]]).x for i in range(4) for j in range(6)]
    x = torch.cat([model.patch_embed.cls.expand(2, -1, -1), *places], 1) + model.patch_embed.positions.table
    for block in model.stack.blocks:
        theirs = nn.MultiheadAttention(32, 2, batch_first=True).eval()
        for own, ours in (
            (theirs.in_proj_weight, block.mix.qkv.weight),
            (theirs.in_proj_bias, block.mix.qkv.bias),
            (theirs.out_proj.weight, block.mix.out.weight),
            (theirs.out_proj.bias, block.mix.out.bias),
        ):
            own.copy_(ours)
        x = theirs(x, x, x, need_weights=False)[0]
    by_hand = F.linear(x[:, 0], model.head.weight, model.head.bias)
    torch.testing.assert_close(model(picture()), by_hand, rtol=1e-5, atol=1e-6)


def test_scales_that_the_network_lacks_are_refused():
    for scales in (0, 3):
        with pytest.raises(ValueError, match=f"scales={scales}.*between 1 and 2"):
            plait.create_model("duoformer_toy", scales=scales)


def test_the_default_is_small():
    assert 0.8e6 < plait.model_info("duoformer_nano").parameters < 1.2e6
