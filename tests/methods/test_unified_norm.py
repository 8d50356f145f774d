"""Batch statistics for transformers, smoothed and filtered, folded away at the end."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import plait
from plait.core.surgery import fold_norms
from plait.methods.norms.unified_norm import Affine, UnifiedNorm


def fresh(width=6, **options):
    norm = UnifiedNorm(nn.LayerNorm(width), **(dict(window=4, warmup=10, filtration=True, momentum=0.9) | options))
    norm.reset()
    return norm


def spoilt(model):
    """`model` in evaluation, every weight and statistic away from its start."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
        for m in model.modules():
            if isinstance(m, UnifiedNorm):
                m.square.copy_(0.5 + torch.rand(m.square.shape, generator=g))
    return model.eval()


@torch.no_grad()
def test_one_batch_is_divided_by_its_root_mean_square():
    norm, x = fresh(), 3 * torch.randn(4, 5, 6) + 1
    torch.testing.assert_close(norm(x), x / (x.square().mean((0, 1)) + 1e-5).sqrt())


@torch.no_grad()
def test_a_warm_window_is_smoothed_geometrically_and_the_running_square_follows():
    norm, xs = fresh(), [torch.randn(4, 5, 6) * (1 + i % 2) for i in range(12)]
    running, squares = torch.ones(6), [x.square().mean((0, 1)) for x in xs]
    for i, x in enumerate(xs):
        out = norm(x)
        used = squares[i] if i < 9 else torch.stack(squares[i - 3 : i + 1]).log().mean(0).exp()
        running = 0.9 * running + 0.1 * used
    torch.testing.assert_close(out, x / (used + 1e-5).sqrt())
    torch.testing.assert_close(norm.square, running)
    assert not torch.allclose(out, x / (squares[-1] + 1e-5).sqrt(), rtol=0.1)


@torch.no_grad()
def test_a_batch_with_outliers_is_normed_by_itself_and_forgotten():
    out = {}
    for filtration in (True, False):
        norm, g = fresh(filtration=filtration), torch.Generator().manual_seed(0)
        for _ in range(20):
            norm(torch.randn(64, 6, generator=g))
        norm(100 * torch.randn(64, 6, generator=g))
        out[filtration] = norm.squares.max()
    assert out[True] < 2 < 1000 < out[False]


def test_the_gradient_of_a_cold_norm_is_that_of_its_formula_but_for_the_smoothed_part():
    """momentum 0 takes the batch's own statistics for the running ones: then the gradient is exact."""
    norm, x = fresh(momentum=0.0, warmup=100), torch.randn(4, 5, 6, requires_grad=True)
    nn.init.normal_(norm.old.weight)
    g = torch.randn(4, 5, 6)
    (norm(x) * g).sum().backward()
    other = x.detach().clone().requires_grad_()
    weight = norm.old.weight.detach().clone().requires_grad_()
    (weight * other / (other.square().mean((0, 1)) + 1e-5).sqrt() * g).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.old.weight.grad, weight.grad, rtol=1e-5, atol=1e-5)


def test_padding_stays_out_of_the_statistics_of_batch_and_gradient():
    x, keep, g = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True] * 2 + [False] * 3]), torch.randn(2, 5, 6)
    seen = []
    for filler in (0.0, 1e3):
        norm, at = fresh(), x.masked_fill(~keep[..., None], filler).requires_grad_()
        y = norm(at, keep)
        (y * g).sum().backward()
        seen.append((y[keep], at.grad[keep], norm.square, norm.slope))
    for a, b in zip(*seen):
        torch.testing.assert_close(a, b)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "deit3", "swin", "bert", "clip", "albef"])
def test_folded_it_answers_the_same(name):
    model = plait.create_model(f"{name}_toy")
    plait.apply_method(model, "unified_norm")
    folded = fold_norms(copy.deepcopy(spoilt(model).double()))  # an identity, not what rounding makes of it
    batch = {"image": torch.rand(2, 3, 32, 32, dtype=torch.float64), "text": torch.randint(5, 64, (2, 12))}
    answers = [m.embed(batch) if len(m.takes) > 1 else {"": m(batch[m.takes[0]])} for m in (model, folded)]
    for key, value in answers[0].items():
        torch.testing.assert_close(answers[1][key], value, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, UnifiedNorm) for m in folded.modules())


def test_every_linear_layer_of_a_vit_takes_its_norm_in():
    model = plait.create_model("vit_toy").eval()
    layers = sum(isinstance(m, nn.Linear) for m in model.modules())
    plait.apply_method(model, "unified_norm")
    fold_norms(model)
    left = [n for n, m in model.named_modules() if isinstance(m, (Affine, nn.LayerNorm))]
    assert left == ["norm"] and sum(isinstance(m, nn.Linear) for m in model.modules()) == layers


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="window"):
        plait.apply_method(plait.create_model("vit_toy"), "unified_norm", window=1)
    with pytest.raises(ValueError, match="LayerNorm"):
        plait.apply_method(nn.Sequential(nn.Linear(2, 2)), "unified_norm")
