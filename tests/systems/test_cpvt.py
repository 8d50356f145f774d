"""CPVT: positions from content and borders, no size to resample to, and features that move with the picture."""

from __future__ import annotations

import pytest
import torch

import plait
from tests.parity.compare import perturb


@pytest.mark.parametrize(
    "size, millions", [("tiny", 6), ("small", 23), ("base", 88), ("tiny_gap", 6), ("small_gap", 23), ("base_gap", 88)]
)
def test_the_published_counts_of_parameters(size, millions):
    assert plait.model_info(f"cpvt_{size}").parameters / 1e6 == pytest.approx(millions, rel=0.06)


@torch.no_grad()
def test_without_positions_places_cannot_be_told_apart_and_with_them_they_can():
    # the same patch everywhere
    picture = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 5, 5)
    told = {}
    for encodings in (0, 1):
        model = perturb(plait.create_model("cpvt_toy", cls=False, encodings=encodings))
        body = model.tokens(picture).body()[0]
        told[encodings] = torch.cdist(body, body).max()
    assert told[0] < 1e-4 < 1e-2 < told[1]


@torch.no_grad()
def test_the_encoding_moves_with_the_picture_away_from_the_border():
    """Around the middle the encoding of a picture moved by a patch is the moved encoding; at the border it is not."""
    model = perturb(plait.create_model("cpvt_toy", cls=False))
    encoding = model.stack.blocks[0].feed[1]
    t = model.stem(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    grid = t.x.unflatten(1, t.grid)
    moved = t.replace(x=grid.roll((1, 1), (1, 2)).flatten(1, 2))
    here, there = (encoding(v).x.unflatten(1, t.grid) for v in (t, moved))
    here = here.roll((1, 1), (1, 2))
    torch.testing.assert_close(here[:, 2:-1, 2:-1], there[:, 2:-1, 2:-1])
    assert (here - there)[:, 0].abs().max() > 1e-2


@torch.no_grad()
def test_other_sizes_need_no_resampling():
    model = plait.create_model("cpvt_toy").eval()
    assert not any(p.shape[-2:] == (17, 32) for p in model.parameters() if p.dim() > 1)  # no table of 1 + 16 places
    for size in ((32, 32), (64, 96), (8, 128)):
        assert model(torch.rand(2, 3, *size)).shape == (2, 10)
