"""CrossViT: one query per swap, other picture sizes, and a parity tight enough to see a wrong eps."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from tests.parity.crossvit import parity


def test_a_swap_asks_with_one_query():
    model = plait.create_model("crossvit_toy").eval()
    watched, maps = recorded(model)
    watched(torch.rand(1, 3, 32, 32))
    swaps = [m for m in maps if m.shape[2] == 1]
    # the fine branch asks the 9 coarse patches, the coarse one the 64 fine
    assert [m.shape[3] for m in swaps] == [1 + 9, 1 + 64] * 2
    assert len(maps) == len(swaps) + 5


@torch.no_grad()
@pytest.mark.parametrize("height, width, fine", [(32, 32, (8, 8)), (48, 64, (12, 16)), (36, 32, (9, 8))])
def test_other_sizes(height, width, fine):
    model = plait.create_model("crossvit_toy").eval()
    t = model.tokens(torch.rand(2, 3, height, width))
    assert t.grid == fine and t.x.shape == (2, 1 + fine[0] * fine[1], model.width) and t.prefix == 1
    assert model.pool(t).shape == (2, model.width)


@torch.no_grad()
def test_without_classes_it_gives_its_features():
    model = plait.create_model("crossvit_toy", num_classes=0).eval()
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.pool(model.tokens(x)))


def test_drop_path_grows_over_the_rounds():
    model = plait.create_model("crossvit_toy", drop_path=0.3)
    rates = [
        [s.blocks[-1].mix.after.rate for s in r.stacks] + [swap.drop.rate for swap in r.swaps] for r in model.rounds
    ]
    assert rates[0] == pytest.approx([0.0, 0.15, 0.15, 0.15]) and rates[1] == pytest.approx([0.3, 0.3, 0.3, 0.3])


def test_a_wrong_eps_would_show():
    assert parity("crossvit_9_dagger").error < 5e-6  # norms with ten times the eps differ by 7e-5
