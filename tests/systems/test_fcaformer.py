"""FcaFormer: what each layer asks, that factors of zero silence the past, and the sizes and costs that were
published."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import recorded, with_backend
from plait.core.catalog import build
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.fcaformer import ForwardCrossAttention
from tests.parity.compare import perturb


@torch.no_grad()
def test_each_layer_also_asks_the_cross_tokens_of_all_before_it_in_its_stage():
    model = plait.create_model(
        "fcaformer_toy", image=(64, 96), widths=(8, 16, 32), depths=(1, 3, 2), heads=(0, 2, 4)
    ).eval()
    watched, maps = recorded(model)
    watched(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(2, 96, 96 + i * 6) for i in range(3)] + [
        (4, 24, 24 + i * 2) for i in range(2)
    ]


def crossed(seed: int) -> tuple[Tokens, Tokens]:
    g = torch.Generator().manual_seed(seed)
    return Tokens(torch.randn(2, 5, 16, generator=g)), Tokens(torch.randn(2, 5, 16, generator=g))


@torch.no_grad()
def test_factors_of_zero_silence_what_earlier_layers_said():
    f = perturb(initialise(ForwardCrossAttention(16, 2, (3, 4), 10)))
    t = Tokens(torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(2)), grid=(3, 4))
    assert not torch.allclose(f(t.reading(layers=crossed(0))).x, f(t.reading(layers=crossed(1))).x, atol=1e-4)
    f.recall.scale.zero_()
    torch.testing.assert_close(f(t.reading(layers=crossed(0))).x, f(t.reading(layers=crossed(1))).x)
    f.recall.bias.fill_(-1e9)  # nor do the constants that are left of them take attention away: plain attention
    plain = initialise(ForwardCrossAttention(16, 2, (3, 4), 0))
    plain.load_state_dict({k: v for k, v in f.state_dict().items() if not k.startswith("recall.")})
    torch.testing.assert_close(f(t.reading(layers=crossed(0))).x, plain(t).x)


@torch.no_grad()
def test_cross_tokens_are_made_before_the_enhancement_and_reach_the_next_layer():
    model = perturb(plait.create_model("fcaformer_toy", image=(64, 64)))
    first, second, _ = model.stages[1][1].f.blocks
    t = Tokens(torch.randn(1, 64, 32, generator=torch.Generator().manual_seed(0)), grid=(8, 8))
    t = t.reading(layers=())
    now = first(t)
    (cross,) = now.read("layers")
    assert cross.grid == (2, 2)
    torch.testing.assert_close(cross.x, first.merge(first.mix(t)).x)
    later = second(now)
    assert len(later.read("layers")) == 2 and later.read("layers")[0] is cross
    assert not torch.equal(later.x, second(now.reading(layers=(cross.replace(x=-cross.x),))).x)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected 32 x 32"):
        plait.create_model("fcaformer_toy")(torch.rand(1, 3, 64, 64))


PUBLISHED = {"l1": (6.2e6, 1.37e9), "l2": (16.3e6, 3.6e9)}


@torch.no_grad()
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_parameters_and_costs(size):
    """Costs are counted here without norms, activations and layer scales, which are two percent."""
    model = build(f"fcaformer_{size}").eval()
    eager = with_backend(model, "eager")
    with FlopCounterMode(display=False) as counter:
        eager(torch.empty(1, 3, 224, 224, device="meta"))
    parameters, products = PUBLISHED[size]
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)
    assert 0.97 * products < counter.get_total_flops() / 2 < 1.01 * products
