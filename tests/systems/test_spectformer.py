"""SpectFormer: filters see the whole map and interpolate to other sizes, early layers filter and late ones attend,
places answer too."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from plait.core.init import initialise
from plait.core.tokens import Tokens, mean
from plait.errors import PlaitError
from plait.systems.vision.spectformer import SpectralGate
from tests.parity.compare import perturb


def tokens(*grid: int) -> Tokens:
    return Tokens(torch.randn(2, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(0)), grid=grid)


@torch.no_grad()
def test_a_filter_is_a_convolution_with_a_kernel_as_large_as_the_map():
    """In a ring: the product of frequencies is, by the convolution theorem, the sum over all places of the kernel times
    what lies there."""
    gate, t = initialise(SpectralGate(3, (4, 6))), tokens(4, 6)
    kernel = torch.fft.irfft2(torch.view_as_complex(gate.filter), s=(4, 6), dim=(0, 1))  # (4, 6, D)
    x, expected = t.x.unflatten(1, (4, 6)), torch.zeros(2, 4, 6, 3)
    for i in range(4):
        for j in range(6):
            expected += kernel[i, j] * x.roll((i, j), (1, 2))
    torch.testing.assert_close(gate(t).x, expected.flatten(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 12), (3, 5), (4, 7)])
def test_filters_interpolate_to_other_resolutions(grid):
    gate, t = initialise(SpectralGate(3, (4, 6))), tokens(*grid)
    gate.filter.zero_()
    # a gain that grows with the number of the row of frequencies
    gate.filter[..., 0] = torch.linspace(1, 2, 4)[:, None, None]
    waves = torch.fft.rfft2(t.x.unflatten(1, grid), dim=(1, 2)) * torch.linspace(1, 2, grid[0])[:, None, None]
    torch.testing.assert_close(gate(t).x, torch.fft.irfft2(waves, s=grid, dim=(1, 2)).flatten(1, 2))


@torch.no_grad()
def test_the_same_picture_at_another_size_is_much_the_same():
    """A filter that was learnt at 8 x 8 passes a slow wave at 16 x 16 as it does at its own size."""
    gate = initialise(SpectralGate(1, (8, 8)))
    step = torch.linspace(2, 1, 5)  # gains fall with the frequency, along columns alone
    gate.filter.zero_()[..., 0] = step[:, None]
    for side in (8, 16):
        wave = torch.cos(2 * torch.pi * torch.arange(side) / side).repeat(side)[None, :, None]
        ratio = (gate(Tokens(wave, grid=(side, side))).x / wave)[wave.abs() > 0.5]
        torch.testing.assert_close(ratio, torch.full_like(ratio, 2 - 2 / side))


@torch.no_grad()
def test_layers_filter_first_and_attend_later():
    plain = plait.create_model("spectformer_xs", image=(64, 64), patch=16, widths=(24,), depths=(6,), heads=(4,)).eval()
    tree = plait.create_model(
        "spectformer_h_s", image=(64, 64), widths=(8, 8, 16, 16), depths=(1, 1, 2, 1), heads=(1, 1, 2, 4)
    ).eval()
    for model, expected in ((plain, [(4, 16, 16)] * 2), (tree, [(2, 16, 16)] * 2 + [(4, 4, 4), (4, 1, 5)])):
        watched, maps = recorded(model)
        watched(torch.rand(1, 3, 64, 64))
        assert [tuple(m.shape[1:]) for m in maps] == expected


@torch.no_grad()
def test_the_hierarchy_adds_half_of_the_best_answer_of_any_place():
    model = perturb(plait.create_model("spectformer_toy"))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    t = model.tokens(x)
    places = torch.stack([model.aux(model.norm(t.x[:, n])) for n in range(t.x.shape[1])])
    torch.testing.assert_close(model(x), model.head(model.pool(t)) + places.amax(0) / 2)
    assert not torch.allclose(model.pool(t), model.norm(mean(t)), atol=1e-3)  # the mean has asked


@pytest.mark.parametrize("arguments", [dict(patch=8), dict(thin=None)])
def test_a_form_has_patches_or_a_thin_stem(arguments):
    with pytest.raises(PlaitError, match="expected one"):
        plait.create_model("spectformer_toy", **arguments)


PUBLISHED = {"ti": 9_158_376, "xs": 20_028_520, "s": 32_449_768}  # as the public training logs say


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_of_the_published_runs(size):
    assert plait.model_info(f"spectformer_{size}").parameters == PUBLISHED[size]
