"""TNT's own claims: words are read inside their patch only, and patches learn of them in every layer."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded


@torch.no_grad()
def test_words_know_nothing_of_other_patches_and_patches_of_all():
    model = plait.create_model("tnt_toy").eval()
    x = torch.rand(1, 3, 32, 32)
    changed = x.clone()
    changed[..., 8:16, 16:24] += 1.0  # the patch of row 1, column 2: number 6 of 16
    words, others = model.words(x)[0], model.words(changed)[0]
    assert [bool((a != b).any()) for a, b in zip(words, others)] == [i == 6 for i in range(16)]
    t, u = model.tokens(x), model.tokens(changed)
    assert ((t.x - u.x).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_each_layer_attends_among_words_then_among_patches():
    model = plait.create_model("tnt_toy").eval()
    watched, maps = recorded(model)
    watched(torch.rand(3, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == 2 * [(3 * 16, 2, 4, 4), (3, 2, 17, 17)]


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True])
def test_cutting_before_the_convolution_is_what_legacy_does_not_do(legacy):
    model = plait.create_model("tnt_toy", legacy=legacy).eval()
    x = torch.rand(1, 3, 32, 32)
    changed = x.clone()
    changed[..., 15, 23] += 1.0  # the lower right corner of a patch
    touched = [(a != b).any() for a, b in zip(model.words(x)[0], model.words(changed)[0])]
    assert sum(touched) == (4 if legacy else 1)  # the kernel reaches over the edge
