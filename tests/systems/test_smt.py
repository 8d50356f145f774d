"""SMT: the published parameters and multiply-adds."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from plait.core.catalog import build
from tests.parity.compare import count

COSTS = {"t": 2.4, "s": 4.7, "b": 7.7}  # thousand million at 224 x 224, without attention's own products
PARAMETERS = {"t": 11.5e6, "b": 32.0e6}


@torch.no_grad()
@pytest.mark.parametrize("size", COSTS)
def test_published_multiply_adds(size):
    with FlopCounterMode(display=False) as counter:
        build(f"smt_{size}").eval()(torch.empty(1, 3, 224, 224, device="meta"))
    layers = (torch.ops.aten.convolution, torch.ops.aten.addmm)
    assert round(sum(counter.get_flop_counts()["Global"][layer] for layer in layers) / 2e9, 1) == COSTS[size]


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_parameters(size):
    assert count(build(f"smt_{size}")) == pytest.approx(PARAMETERS[size], rel=0.01)


def test_the_small_size_has_the_published_parameters_with_one_layer_less():
    assert count(build("smt_s", depths=(3, 4, 18, 1))) == pytest.approx(20.5e6, rel=0.01)
    assert count(build("smt_s")) == pytest.approx(22.55e6, rel=0.001)
