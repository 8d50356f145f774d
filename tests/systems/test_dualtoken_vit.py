"""DualToken-ViT: global tokens keep their number and their places, live on from layer to layer, and connect the whole
picture."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import with_backend
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.dualtoken_vit import Reduce
from tests.parity.compare import perturb

PUBLISHED = {"tiny": 0.5e9, "small": 1.0e9}  # multiply-adds at 224 x 224


@torch.no_grad()
@pytest.mark.parametrize("size", PUBLISHED)
def test_multiply_adds_are_the_published_ones(size):
    model = plait.create_model(f"dualtoken_vit_{size}").eval()
    eager = with_backend(model, "eager")
    with FlopCounterMode(display=False) as flops:  # fused kernels go uncounted
        eager(torch.zeros(1, 3, 224, 224))
    assert flops.get_total_flops() / 2 == pytest.approx(PUBLISHED[size], rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("picture", [(224, 224), (160, 288)])
def test_the_number_of_global_tokens_is_the_same_in_all_stages_and_for_all_pictures(picture):
    streams = plait.create_model("dualtoken_vit_small").eval().streams(torch.zeros(2, 3, *picture))
    assert [tuple(t.read("whole").x.shape) for t in streams] == [(2, 49, 64), (2, 49, 128), (2, 49, 256)]
    assert [t.grid for t in streams] == [tuple(side // stride for side in picture) for stride in (8, 16, 32)]


def layers():
    model = perturb(
        plait.create_model("dualtoken_vit_toy", widths=(16,), depths=(2,), heads=(2,), hidden=(2,))
    ).double()  # what comes from afar is small
    return model, model.stages[0].layers


def changed(layer, g: Tokens) -> torch.Tensor:
    """Which of 24 x 24 places are another's when the first place is."""
    x = torch.randn(1, 576, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = x.clone()
    other[:, 0] += 1
    a, b = (layer.local(Tokens(v, grid=(24, 24))) for v in (x, other))
    a, b = (v.replace(x=v.x + layer.mix(v.reading(whole=g)).x) for v in (a, b))
    return (a.x != b.x).any(-1).view(24, 24)


@torch.no_grad()
def test_a_layer_connects_all_places_by_its_global_tokens_alone():
    model, (layer, _) = layers()
    assert changed(layer, Tokens(model.whole)).all()
    layer.mix.share.fill_(60.0)  # the global tokens of the layer before, and nothing of this picture
    assert changed(layer, Tokens(model.whole)).nonzero().max() == 3  # half of the convolution's kernel


@torch.no_grad()
def test_global_tokens_are_a_weighted_sum_of_the_last_ones_and_of_the_attended_coarse_map():
    model, (layer, _) = layers()
    t = Tokens(torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64), grid=(8, 8))
    mix, w = layer.mix, torch.tensor(0.3, dtype=torch.float64)
    mix.share.copy_(w.logit())
    g = Tokens(torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    seen = mix.attend(mix.reduce(t.replace(x=mix.norm(t.x)))).x
    torch.testing.assert_close(mix(t.reading(whole=g)).read("whole").x, mix.mixer(Tokens(w * g.x + (1 - w) * seen)).x)


@torch.no_grad()
def test_every_global_token_stands_for_its_place():
    reduce = initialise(Reduce(4, 2, 3)).eval()
    x = torch.randn(1, 144, 4, generator=torch.Generator().manual_seed(0))
    other = x.clone().view(1, 12, 12, 4)
    other[:, 0, 11] += 1  # the upper right corner
    a, b = (reduce(Tokens(v.view(1, 144, 4), grid=(12, 12))).x for v in (x, other))
    assert (a != b).any(-1).view(3, 3).nonzero().tolist() == [[0, 2]]


def test_what_the_first_layer_puts_into_global_tokens_reaches_the_last_map():
    model, (first, second) = layers()
    first.mix.share.data.fill_(-1000.0)
    model.whole.requires_grad_()
    (dead,) = torch.autograd.grad(model(torch.rand(1, 3, 32, 32, dtype=torch.float64)).sum(), model.whole)
    first.mix.share.data.fill_(0.0)
    (alive,) = torch.autograd.grad(model(torch.rand(1, 3, 32, 32, dtype=torch.float64)).sum(), model.whole)
    assert not dead.any() and alive.abs().amax(2).min() > 0
