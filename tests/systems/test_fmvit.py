"""FMViT: what is trained as many convolutions is deployed as one, says the same, and sooner; channels are shared out by
frequency."""

from __future__ import annotations

import copy
import statistics
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import recorded
from plait.core.init import initialise
from plait.core.surgery import fold_norms
from plait.systems.vision.fmvit import Mix, MultiGroup, Reduce
from tests.parity.compare import perturb, relative_error

X = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def cost(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as flops:
        model(X)
    return flops.get_total_flops()


def seconds(model: nn.Module) -> float:
    """The median processor time of a run."""
    found = []
    for _ in range(7):
        start = time.process_time()
        model(X)
        found.append(time.process_time() - start)
    return statistics.median(found)


@torch.no_grad()
@pytest.mark.parametrize("size", ["toy", "nano"])
def test_the_folded_net_agrees_and_is_smaller_and_faster(size):
    model = perturb(plait.create_model(f"fmvit_{size}"))
    folded = fold_norms(copy.deepcopy(model))
    assert relative_error(folded(X), model(X)) < 1e-5
    assert len(list(folded.modules())) < 0.6 * len(list(model.modules()))
    assert cost(folded) < 0.95 * cost(model) and seconds(folded) < seconds(model)
    assert [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)] == [folded.norm]  # the one before the mean


@torch.no_grad()
@pytest.mark.parametrize("groups", [(4, 2), (1, 4), (6, 3, 1), (3, 3)])
@pytest.mark.parametrize("out", [12, 24])
def test_any_groups_fold_into_the_fewest(groups, out):
    branches = perturb(initialise(MultiGroup(12, out, 3, groups)))
    x = torch.randn(2, 12, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = branches(x)
    conv, _ = fold_norms(branches)
    assert conv.groups == min(groups) and conv.kernel_size == (3, 3)
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_reduction_of_keys_folds_into_one_convolution():
    reduce = perturb(initialise(Reduce(6, 2)))
    x = torch.randn(2, 6, 8, 4, generator=torch.Generator().manual_seed(0))
    expected = reduce(x)
    conv = fold_norms(reduce)
    assert type(conv) is nn.Conv2d
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-5)
    model = plait.create_model("fmvit_nano").eval()
    watched, maps = recorded(model)
    watched(X)
    # heads of a quarter and of a half; keys of a quarter and of all
    assert [m.shape[1:] for m in maps] == [(1, 64, 16), (4, 16, 16)]


@torch.no_grad()
def test_low_frequencies_come_from_the_whole_map_and_high_ones_from_the_neighbours():
    mix = perturb(initialise(Mix(16, 4, 0.25, 1, 0.0))).double()
    # so that attention is not sharp
    x = 0.1 * torch.randn(1, 16, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = x.clone()
    other[0, :, 4, 4] += 1
    low, high = (path(x) != path(other) for path in (mix.low, mix.high))
    assert low.shape[1] == 4 and low.any(1).all()
    assert high.shape[1] == 12 and high.any(1)[0].nonzero().unique().tolist() == [3, 4, 5]


def test_a_share_that_leaves_nothing_to_convolve_is_refused():
    with pytest.raises(ValueError, match="none to convolve"):
        Mix(16, 8, 0.9, 1, 0.0)
