"""MAFormer: windows ask half as many tokens that one matrix over places distils from the whole map."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.core.tokens import Tokens
from tests.parity.compare import perturb


@torch.no_grad()
@pytest.mark.parametrize("picture", [(224, 224), (160, 288), (100, 130)])
def test_maps_have_four_resolutions_of_any_picture(picture):
    model = plait.create_model("maformer_nano").eval()
    shapes = [tuple(m.shape[1:]) for m in model.maps(torch.zeros(1, 3, *picture))]
    assert shapes == [
        (w, *(-(-side // stride) for side in picture)) for w, stride in zip((32, 64, 96, 128), (4, 8, 16, 32))
    ]


def test_every_place_asks_half_as_many_tokens_as_the_native_map_has_and_the_last_stage_attends_to_itself():
    model = plait.create_model("maformer_toy").eval()
    for size, grids in (((32, 32), (256, 64, 16, 4)), ((48, 64), (768, 192, 48, 12))):
        watched, maps = recorded(model)
        watched(torch.rand(1, 3, *size))
        windows = [m.shape[2:] for m in maps[:6:2]]
        assert windows == [(16, 16)] * 3
        assert [m.shape[2:] for m in maps[1:6:2]] == [(n, keys) for n, keys in zip(grids, (128, 32, 8))]
        assert maps[6].shape[2:] == (grids[3], grids[3])


def fusion():
    return perturb(plait.create_model("maformer_toy")).stages[0][1].f.blocks[0].mix.f


@torch.no_grad()
def test_windows_and_answers_are_added_and_the_windows_do_the_asking():
    f = fusion()
    t = Tokens(torch.randn(2, 256, 8, generator=torch.Generator().manual_seed(0)), grid=(16, 16))
    fine = f.local(t).x
    coarse = (
        torch.einsum("mn,bnd->bmd", f.distil.places.weight, t.x) + f.distil.places.bias[:, None] + f.distil.positions
    )
    k, v = f.ask.kv(coarse).split(8, 2)
    answer = (f.ask.q(fine) @ k.mT / 8**0.5).softmax(2) @ v  # one head
    torch.testing.assert_close(f(t).x, fine + f.ask.out(answer))


@torch.no_grad()
def test_only_coarse_tokens_reach_beyond_a_window():
    f = fusion().double()
    x = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = x.clone()
    other[:, 0] += 1

    def seen():
        return (f(Tokens(x, grid=(16, 16))).x != f(Tokens(other, grid=(16, 16))).x).any(-1).view(16, 16)

    assert seen().all()
    f.ask.out.weight.zero_()
    assert seen().sum() == 16 and seen()[:4, :4].all()
