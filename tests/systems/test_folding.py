"""Batch norms and branches folded away: the same answers, fewer modules, and nothing folded unasked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import plait
from plait.core.surgery import fold_norms
from tests.parity.compare import perturb

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
SYSTEMS = ("tiny_vit", "efficientvit_m", "nextvit", "cvt", "unireplknet", "smt", "fmvit")


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, NORMS) for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("system", SYSTEMS)
def test_folded_backbones_answer_the_same(system):
    model = perturb(plait.create_model(f"{system}_toy"))
    folded = fold_norms(copy.deepcopy(model))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-4, atol=1e-4)
    last = int(system in ("nextvit", "fmvit"))  # the one before the mean has no neighbour to go into
    assert norms(model) > last and norms(folded) == last
    torch.testing.assert_close(fold_norms(folded)(x), folded(x))  # nothing is left to fold


@torch.no_grad()
def test_folded_branches_answer_the_same():
    model = perturb(plait.create_model("mobileclip_toy"))
    folded = fold_norms(copy.deepcopy(model))
    batch = {"image": torch.rand(2, 3, 32, 32), "text": torch.randint(1, 64, (2, 12))}
    for slot, vector in model.embed(batch).items():
        torch.testing.assert_close(folded.embed(batch)[slot], vector, rtol=1e-4, atol=1e-4)
    assert norms(model) and not norms(folded)
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in x.modules()) for x in (model, folded)]
    assert convolutions[1] < convolutions[0]


@torch.no_grad()
def test_norms_before_a_linear_layer_and_after_one():
    model = perturb(
        nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5))
    )
    x = torch.randn(4, 6)
    expected = model(x)
    folded = fold_norms(model)
    torch.testing.assert_close(folded(x), expected)
    assert [type(m) for m in folded] == [nn.Linear, nn.ReLU, nn.BatchNorm1d]


def test_a_model_in_training_is_refused():
    model = plait.create_model("efficientvit_m_toy").train()
    with pytest.raises(ValueError, match="eval"):
        fold_norms(model)
    assert norms(model)
