"""Weights of 8 bits: how far they are off, what is saved, what is computed."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import plait
from plait.core.recipe import Recipe
from plait.core.weights import assign
from plait.methods.quantization.int8 import Int8Linear, rounded


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_is_off_by_half_a_step_at_most():
    x = draw(7, 50) * torch.tensor([1e-3, 1, 10, 0, 1, 1, 1e3])[:, None]
    q, scale = rounded(x)
    assert q.dtype is torch.int8 and q.abs().max() == 127 and (q[3] == 0).all()
    assert ((q * scale - x).abs() <= scale / 2 * 1.0001).all()


@pytest.mark.parametrize("activations", [False, True])
def test_a_layer_computes_what_its_integers_say(activations):
    old, x = nn.Linear(48, 32), draw(3, 5, 48)
    new = Int8Linear(old, activations)
    weight = new.weight.double() * new.scale.double()[:, None]
    q, scale = rounded(x)
    read = q.double() * scale.double() if activations else x.double()
    torch.testing.assert_close(new(x), (read @ weight.T + old.bias).float(), rtol=1e-5, atol=1e-5)
    assert 1e-4 < (new(x) - old(x)).norm() / old(x).norm() < 0.02
    x.requires_grad_()
    (grad,) = torch.autograd.grad(new(x).square().sum(), x)
    (want,) = torch.autograd.grad(old(x).square().sum(), x)
    assert (grad - want).norm() < 0.03 * want.norm()


@torch.no_grad()
@pytest.mark.parametrize("activations", [False, True])
def test_a_quarter_of_the_room_is_saved_loaded_and_exported(activations):
    recipe = Recipe("vit_toy", {"width": 64, "heads": 2}, [("int8", {"activations": activations})])
    model, x = recipe.build().eval(), draw(2, 3, 32, 32)
    want, state = model(x), save(model.state_dict())
    assert len(state) < 0.4 * len(save(plait.create_model("vit_toy", width=64).state_dict()))
    again = recipe.build_on_meta().eval()
    assign(again, (([t], {k: t}) for k, t in load(state).items()))
    assert torch.equal(again(x), want)
    file, rows = io.BytesIO(), torch.export.Dim("rows", min=2, max=64)
    torch.export.save(torch.export.export(model, (x,), dynamic_shapes=({0: rows},)), file)
    file.seek(0)
    more = draw(5, 3, 32, 32, seed=1)
    torch.testing.assert_close(torch.export.load(file).module()(more), model(more), rtol=1e-5, atol=1e-5)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(more), model(more), rtol=1e-5, atol=1e-5)


def test_the_answer_stays_near_and_the_rest_still_learns():
    model, x = plait.create_model("vit_toy").eval(), draw(2, 3, 32, 32)
    want = model(x)
    undo = plait.apply_method(model, "int8", activations=True)
    assert 1e-4 < (model(x) - want).norm() / want.norm() < 0.1
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    undo()
    assert torch.equal(model(x), want)
    with pytest.raises(ValueError, match="no linear layers within its layers"):
        plait.apply_method(nn.Sequential(nn.Linear(2, 2)), "int8")
