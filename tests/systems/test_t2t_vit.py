"""T2T-ViT's own claims: its sizes, what a token sees, and how well the Performer stands for attention."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.init import initialise
from plait.systems.vision.t2t_vit import Performer
from tests.parity.official import as_published
from tests.parity.t2t_vit import CASES, NUMBERS


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"t2t_vit_toy"}))
def test_published_sizes_have_the_official_names_shapes_and_counts(name):
    assert as_published(name, NUMBERS[name.removeprefix("t2t_vit_")], plait.model_info(name).weights["source"])


@torch.no_grad()
def test_tokens_see_beyond_their_own_sixteen_pixels():
    stem = plait.create_model("t2t_vit_toy", image=(64, 64)).stem
    # without what the thin layers mix over the whole picture: only the soft splits are left
    stem.first.mix.out.weight.zero_()
    stem.second.mix.out.weight.zero_()
    x = torch.rand(1, 3, 96, 96)
    seen = []
    for column in range(96):
        changed = x.clone()
        changed[..., column] += 1
        seen.append(bool((stem(changed).x - stem(x).x).unflatten(1, (6, 6))[:, :, 3].abs().max() > 0))
    assert seen.index(True) < 48 and sum(seen) > 16  # the fourth column of tokens lies at 48 to 63


@torch.no_grad()
def test_the_performer_comes_near_to_attention_with_many_features():
    """With normal features its kernel is the exponential of the product on average: with 200,000 of them it is near."""
    torch.manual_seed(0)
    with torch.device("meta"):
        layer = Performer(12, 8)
    layer = initialise(layer)
    x = torch.randn(1, 40, 12)
    layer.kqv.weight.normal_(std=0.08)
    k, q, v = layer.kqv(x).chunk(3, -1)
    layer.features = torch.randn(200_000, 8)
    scores = (q @ k.mT).exp()
    torch.testing.assert_close(layer.kernel(q) @ layer.kernel(k).mT, scores, rtol=0.1, atol=0.0)
    y = layer.kernel(q) @ layer.kernel(k).mT
    torch.testing.assert_close(layer(x), v + layer.out(y / y.sum(-1, keepdim=True) @ v), rtol=1e-4, atol=1e-5)
