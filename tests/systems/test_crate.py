"""CRATE's own claims: the feed-forward is a step of ISTA, attention has one projection, and the coding rate can be
read."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.crate import Ista, coding_rate
from tests.parity.crate import CASES, NUMBERS
from tests.parity.official import as_published


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"crate_toy"}))
def test_published_sizes_have_the_official_names_shapes_and_counts(name):
    assert as_published(name, NUMBERS[name.removeprefix("crate_")])


@torch.no_grad()
def test_the_feed_forward_is_a_proximal_gradient_step_that_never_makes_the_objective_larger():
    with torch.device("meta"):
        layer = Ista(12)
    layer = initialise(layer)
    layer.dictionary /= 1.001 * torch.linalg.matrix_norm(layer.dictionary, 2)  # so that a step of 0.1 is safely short
    x = torch.rand(50, 12)  # non-negative: a code that may be started from

    def objective(z):
        return (x - z @ layer.dictionary.mT).square().sum(-1) / 2 + layer.penalty * z.sum(-1)

    z = layer(Tokens(x[None])).x[0]
    explicit = torch.relu(x + 0.1 * (x @ layer.dictionary - x @ layer.dictionary.mT @ layer.dictionary) - 0.1 * 0.1)
    torch.testing.assert_close(z, explicit)
    assert (z >= 0).all() and (objective(z) < objective(x)).all()


@torch.no_grad()
def test_queries_keys_and_values_are_one_projection():
    names = plait.create_model("crate_toy").stack.blocks[0].mix.f.state_dict()
    assert {n: tuple(v.shape) for n, v in names.items()} == {
        "onto.weight": (32, 32),
        "out.weight": (32, 32),
        "out.bias": (32,),
    }
    assert (plait.create_model("crate_toy").eval().tokens(torch.rand(2, 3, 32, 32)).x >= 0).all()


def test_the_coding_rate_falls_when_tokens_lie_in_fewer_dimensions():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 8, generator=g)
    rates = [coding_rate(torch.cat([x[..., :d], torch.zeros(2, 20, 8 - d)], -1)) for d in (8, 4, 2, 1)]
    assert all((a > b).all() for a, b in zip(rates, rates[1:]))
    one = torch.full((1, 5, 4), 0.5)  # five times the same direction: det(I + c 1 1^T) = 1 + 5 c
    torch.testing.assert_close(coding_rate(one), torch.tensor([1 + 5 * 4 / (5 * 0.01)]).log() / 2)
