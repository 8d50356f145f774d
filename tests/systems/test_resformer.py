"""ResFormer's own claims: positions that change smoothly with the size, and a loss over resolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import plait
from plait.core.tokens import Tokens
from plait.systems.vision.resformer import losses
from tests.parity.recorded import same_keys
from tests.parity.resformer import NUMBERS, PUBLISHED


def test_published_sizes_have_the_official_names_shapes_and_counts():
    for size in PUBLISHED:
        assert same_keys(f"resformer_{size}", "official", NUMBERS[size]["keys"])
        assert plait.model_info(f"resformer_{size}").parameters == NUMBERS[size]["parameters"]


@torch.no_grad()
def test_positions_of_a_finer_grid_are_those_of_a_coarser_one_between():
    positions = plait.create_model("resformer_toy").positions
    positions.refine.weight.zero_()
    positions.refine.weight[:, 0, 1, 1] = 1.0  # the sines as they are
    positions.refine.bias.zero_()
    coarse, fine = (positions(Tokens(torch.zeros(1, n * n, 32), grid=(n, n))).x.unflatten(1, (n, n)) for n in (12, 24))
    # every second place of the fine grid ends where one
    torch.testing.assert_close(fine[:, 1::2, 1::2], coarse, rtol=1e-4, atol=1e-4)
    # of the coarse one does
    assert (fine - F.interpolate(coarse.movedim(3, 1), scale_factor=2).movedim(1, 3)).abs().max() > 0.1


@torch.no_grad()
def test_the_convolution_over_values_begins_as_nothing_and_knows_only_neighbours():
    model = plait.create_model("resformer_toy").eval()
    layer = model.stack.blocks[0].mix.f
    t = Tokens(torch.rand(1, 17, 32), grid=(4, 4), prefix=1)
    plain = layer(t).x
    layer.near.weight[:, 0, 0, 1] = 1.0  # each token gets the value of the one above
    told = layer(t).x - plain
    assert told[:, :5].abs().max() < 1e-6  # neither the class token nor the first row has one
    v = layer.qkv(t.x)[..., 64:]
    torch.testing.assert_close(told[:, 5:], v[:, 1:13] @ layer.out.weight.mT, rtol=1e-4, atol=1e-5)


def test_larger_pictures_teach_and_do_not_learn():
    model = plait.create_model("resformer_toy")
    large, small = (torch.rand(4, 3, n, n, requires_grad=True) for n in (64, 32))
    found = losses(model, [large, small], torch.tensor([0, 1, 2, 3]))
    found["consistency"].backward(retain_graph=True)
    assert large.grad is None and small.grad.abs().sum() > 0
