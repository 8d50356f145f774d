"""ViT-ResNAS: published sizes, an unbroken sum of residuals, and slices that equal the official masked supernet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from plait.core.attend import with_backend
from plait.core.catalog import build
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.vit_resnas import Reduce
from tests.parity.compare import TOLERANCE
from tests.parity.vit_resnas import slices

PUBLISHED = {"tiny": 1.8, "small": 2.8, "medium": 4.5}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_multiply_adds(size):
    eager = with_backend(build(f"vit_resnas_{size}").eval(), "eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        eager(torch.empty(1, 3, 224, 224, device="meta"))
    assert abs(counter.get_total_flops() / 2e9 - PUBLISHED[size]) < 0.06


def test_slices_equal_the_masked_supernet():
    errors = slices()
    assert len(errors) == 3 and max(errors) < TOLERANCE


@torch.no_grad()
def test_what_was_there_goes_on_unchanged():
    """With nothing learned in the reduction, what comes out is the class token, averages of four places, and zeros."""
    step = initialise(Reduce(8, 12, (2, 2)))
    for p in (*step.conv.parameters(), *step.positions.parameters(), *step.cls.parameters()):
        p.zero_()
    x = torch.randn(2, 17, 8, generator=torch.Generator().manual_seed(0))
    out = step(Tokens(x, grid=(4, 4), prefix=1))
    places = F.avg_pool2d(x[:, 1:].mT.unflatten(2, (4, 4)), 2).flatten(2).mT
    torch.testing.assert_close(out.x, F.pad(torch.cat([x[:, :1], places], 1), (0, 4)))
    assert out.grid == (2, 2) and out.prefix == 1


def test_a_reduction_cannot_lose_channels():
    with pytest.raises(ValueError, match="from 8 to 4 channels"):
        Reduce(8, 4, (2, 2))


def test_layers_without_heads_are_left_out_and_keep_their_number():
    whole, cut = (build("vit_resnas_toy", heads=heads) for heads in (((2, 3), (2,), (1, 2)), ((2, 0), (2,), (1, 2))))
    gone = {k for k, _ in whole.named_parameters()} - {k for k, _ in cut.named_parameters()}
    assert gone == {k for k, _ in whole.named_parameters() if k.startswith("blocks.1.")}
