"""Answers that stay when the picture moves around a ring."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.tokens import Tokens
from plait.methods.vision.polyphase_anchoring import AnchoredMap, AnchoredTokens, anchor, consistency, roll
from plait.parts.maps import to_map
from plait.parts.mixers.windows import InWindows
from plait.parts.tokenizers.patches import PatchTokens

SHIFTS = [(1, 0), (0, 1), (3, 7), (8, 16), (17, 30), (31, 31), (13, 2), (6, 25)]


def pair(name, **options):
    """A toy as it is, and anchored."""
    model, plain = (plait.create_model(f"{name}_toy").eval() for _ in range(2))
    plait.apply_method(model, "polyphase_anchoring", **options)
    return plain, model


@torch.no_grad()
def test_a_vit_answers_the_same_wherever_the_picture_lies():
    plain, model = pair("vit")
    x = torch.rand(1, 3, 32, 32)
    moved = torch.cat([x.roll((i, j), (2, 3)) for i in range(32) for j in range(32)])
    torch.testing.assert_close(model(moved), model(x).expand(1024, -1), rtol=1e-5, atol=1e-5)
    assert (plain(moved) - plain(x)).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "deit", "deit3", "dinov2", "cpvt", "twins", "pvt", "swin"])
def test_in_double_precision_logits_agree_to_1e_10_and_maps_are_rolled_copies(name):
    plain, model = (m.double() for m in pair(name))
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    moved = torch.cat([x.roll(shift, (2, 3)) for shift in SHIFTS])
    torch.testing.assert_close(model(moved), model(x).expand(len(SHIFTS), -1), rtol=1e-10, atol=1e-10)
    assert (plain(moved) - plain(x)).abs().max() > 1e-3
    here, there = to_map(model.tokens(x)), to_map(model.tokens(moved))
    h, w = here.shape[-2:]
    rolled = torch.stack([here[0].roll((i, j), (1, 2)) for i in range(h) for j in range(w)])  # (h w, D, h, w)
    assert (there[:, None] - rolled).abs().amax((2, 3, 4)).amin(1).max() < 1e-10


@torch.no_grad()
def test_an_anchored_picture_is_read_as_before():
    """A ViT with the positions that it has, and windows: where the corner is the anchor already, every cut is the old
    one."""
    x = 0.1 * torch.rand(2, 3, 32, 32)
    x[:, :, ::8, ::8] += 1
    plain, model = pair("vit", kernel=None)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=0)
    windows, t = InWindows(plain.stack.blocks[0], (4, 4)), Tokens(torch.randn(2, 64, 32), grid=(8, 8))
    at_corner = t.replace(x=roll(to_map(t), anchor(to_map(t), (4, 4))).flatten(2).mT)
    assert anchor(to_map(at_corner), (4, 4)).abs().max() == 0
    torch.testing.assert_close(AnchoredTokens(windows, (4, 4))(at_corner).x, windows(at_corner).x)
    assert (AnchoredTokens(windows, (4, 4))(t).x - windows(t).x).abs().max() > 1e-3


@torch.no_grad()
def test_each_picture_has_an_anchor_of_its_own():
    x = torch.rand(2, 3, 12, 8) * 0.1
    x[0, :, 1::4, 3::4] += 1
    x[1, :, 2::4, 0::4] -= 1
    by = anchor(x, (4, 4))
    assert by.tolist() == [[1, 3], [2, 0]]
    rolled = roll(x, by)
    assert torch.equal(rolled[0], x[0].roll((-1, -3), (1, 2))) and torch.equal(rolled[1], x[1].roll((-2, 0), (1, 2)))
    stem = PatchTokens(5, 4)
    torch.testing.assert_close(AnchoredMap(stem, (4, 4))(x).x, stem(rolled).x)


def test_consistency_is_one_and_was_not():
    plain, model = pair("pvt")
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert consistency(model, x, SHIFTS[:4]) == 1 > consistency(plain, x, SHIFTS[:4])


REFUSED = [("bert", "cuts no picture"), ("cvt", "convolution"), ("gmlp", "one size"), ("davit", "convolution")]


@pytest.mark.parametrize(("name", "why"), REFUSED)
def test_what_would_still_know_its_place_is_refused(name, why):
    with pytest.raises(ValueError, match=why):
        plait.apply_method(plait.create_model(f"{name}_toy"), "polyphase_anchoring")


def test_sizes_and_kernels_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="does not divide"):
        pair("vit")[1](torch.rand(1, 3, 36, 32))
    with pytest.raises(ValueError, match="odd"):
        pair("vit", kernel=4)
