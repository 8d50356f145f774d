"""EdgeNeXt: four maps, each half as fine as the one before; attention among channels costs what there are pixels."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from plait.core.attend import with_backend
from plait.core.catalog import build


@torch.no_grad()
@pytest.mark.parametrize("size", ["xx_small", "x_small", "small", "base"])
def test_maps_at_strides_of_4_8_16_and_32(size):
    maps = build(f"edgenext_{size}").eval().maps(torch.empty(1, 3, 256, 320, device="meta"))
    assert [tuple(m.shape[2:]) for m in maps] == [(256 // s, 320 // s) for s in (4, 8, 16, 32)]


@torch.no_grad()
def test_the_cost_grows_with_the_pixels():
    model, costs = with_backend(build("edgenext_xx_small").eval(), "eager"), []
    for side in (256, 512, 1024):
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, side, side, device="meta"))
        costs.append(counter.get_total_flops() / side**2)
    assert max(costs) / min(costs) < 1.01
