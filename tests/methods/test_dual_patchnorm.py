"""Layer norms before and after the projection of patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import plait
from plait.methods.vision.dual_patchnorm import NormedPatches

VITS = ("vit", "deit", "deit3", "dinov2", "vit_clip", "vit_beit3", "crossvit", "gmlp", "resformer")


def changed(system="vit", seed=0):
    model = plait.create_model(f"{system}_toy", seed=seed)
    plait.apply_method(model, "dual_patchnorm")
    return model.eval(), next(m for m in model.modules() if isinstance(m, NormedPatches))


@torch.no_grad()
def test_it_is_norm_linear_norm_of_the_unfolded_picture():
    _, stem = changed()
    for norm in (stem.before, stem.after):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, proj = torch.rand(2, 3, 24, 40), stem.tokens.proj
    patches = F.unfold(x, 8, stride=8).transpose(1, 2)
    want = stem.after(F.linear(stem.before(patches), proj.weight.flatten(1), proj.bias))
    got = stem(x)
    assert got.grid == (3, 5)
    torch.testing.assert_close(got.x, want, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="patches of 8"):
        stem(x[..., :-1])


@torch.no_grad()
def test_brightness_and_contrast_of_a_patch_say_nothing():
    model, stem = changed()
    x = torch.rand(2, 3, 32, 32)
    gain, shift = (torch.rand(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3) for _ in range(2))
    other = (0.5 + 2 * gain) * x + shift
    torch.testing.assert_close(stem(other).x, stem(x).x, rtol=1e-4, atol=1e-4)
    plain = plait.create_model("vit_toy").eval()
    assert (plain(other) - plain(x)).abs().max() > 100 * (model(other) - model(x)).abs().max()


@pytest.mark.parametrize("system", VITS)
def test_two_norms_are_all_that_is_new(system):
    model, _ = changed(system)
    plain = dict(plait.create_model(f"{system}_toy").named_parameters())
    stems = [m for m in model.modules() if isinstance(m, NormedPatches)]
    new = {id(p) for m in stems for norm in (m.before, m.after) for p in norm.parameters()}
    assert len(new) == 4 * len(stems)
    old = [p for p in model.parameters() if id(p) not in new]
    assert len(old) == len(plain) and all(torch.equal(a, b) for a, b in zip(old, plain.values()))
