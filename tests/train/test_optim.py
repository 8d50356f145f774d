"""Groups, schedule, clipping, precision: against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import plait
from plait.train import optim


class Parts(nn.Module):
    """One of everything that has parameters."""

    def __init__(self):
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(1, 1, 8))
        self.registers = nn.Parameter(torch.zeros(1, 4, 8))
        self.words = nn.Embedding(10, 8)
        self.patch = nn.Conv2d(3, 8, 4)
        self.mix = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)


def test_only_matrices_are_decayed():
    found = optim.groups(Parts(), 0.05)
    names = {g["weight_decay"]: sorted(g["names"]) for g in found}
    assert names[0.05] == ["head.weight", "mix.in_proj_weight", "mix.out_proj.weight", "patch.weight"]
    assert names[0.0] == sorted(
        [
            "cls",
            "registers",
            "words.weight",
            "patch.bias",
            "mix.in_proj_bias",
            "mix.out_proj.bias",
            "norm.weight",
            "norm.bias",
            "head.bias",
        ]
    )
    assert {g["lr_factor"] for g in found} == {1.0}


def test_every_parameter_of_a_system_is_in_one_group():
    model = plait.create_model("vit_toy")
    found = optim.groups(model, 0.1)
    names = [n for g in found for n in g["names"]]
    assert sorted(names) == sorted(n for n, _ in model.named_parameters())
    for group in found:
        assert [id(model.get_parameter(n)) for n in group["names"]] == [id(p) for p in group["params"]]
    decayed = {n for g in found if g["weight_decay"] for n in g["names"]}
    assert "positions.table" not in decayed and "cls" not in decayed and "head.weight" in decayed


def test_factors_multiply_and_frozen_parameters_stay_out():
    model = Parts()
    model.mix.lr_factor, model.mix.out_proj.lr_factor = 0.1, 0.5
    model.words.requires_grad_(False)
    factor = {n: g["lr_factor"] for g in optim.groups(model, 0.05) for n in g["names"]}
    assert (
        factor["mix.in_proj_weight"] == 0.1 and factor["mix.out_proj.weight"] == 0.05 and factor["head.weight"] == 1.0
    )
    assert "words.weight" not in factor
    optimizer = optim.adamw(model, 1.0, 0.05)
    optim.set_rate(optimizer, 0.2)
    assert {round(g["lr"], 9) for g in optimizer.param_groups} == {0.2, 0.02, 0.01}
    with pytest.raises(ValueError, match="no parameter to train"):
        optim.groups(model.requires_grad_(False), 0.05)


@pytest.mark.parametrize(
    ("progress", "warmup", "factor"),
    [
        (0.0, 0.1, 0.0),
        (0.05, 0.1, 0.5),
        (0.1, 0.1, 1.0),
        (0.55, 0.1, 0.505),  # half way down the cosine: 0.01 + 0.99 / 2
        (0.325, 0.1, 0.01 + 0.99 * 0.5 * (1 + math.sqrt(0.5))),
        (1.0, 0.1, 0.01),
        (1.2, 0.1, 0.01),
        (0.0, 0.0, 1.0),
        (1.0, 1.0, 0.01),
        (0.5, 1.0, 0.5),
    ],
)
def test_schedule(progress, warmup, factor):
    assert optim.schedule(progress, warmup) == pytest.approx(factor, abs=1e-12)


def test_clip_scales_the_joint_norm():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    optim.clip([a, b, c], 10.0)
    assert a.grad.tolist() == [3.0, 0.0] and b.grad.tolist() == [0.0, 4.0]
    optim.clip([a, b, c], 1.0)
    torch.testing.assert_close(torch.stack([a.grad, b.grad]), torch.tensor([[0.6, 0.0], [0.0, 0.8]]), rtol=1e-5, atol=0)


def test_the_optimizers_state_by_name_goes_into_another():
    def after(steps: int, optimizer, model) -> None:
        for step in range(steps):
            torch.manual_seed(step)
            model.mix(*[torch.randn(3, 1, 8)] * 3)[0].square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    first, second = Parts(), Parts()
    one, two = optim.adamw(first, 1e-2, 0.1), optim.adamw(second, 1e-2, 0.1)
    after(3, one, first)
    flat = {k: v.clone() for k, v in optim.flat_state(one).items()}
    assert flat["mix.in_proj_weight:step"] == 3 and "head.weight:step" not in flat
    second.load_state_dict(first.state_dict())
    optim.load_flat(two, flat)
    after(2, one, first), after(2, two, second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    with pytest.raises(ValueError, match="1 parameters that the model does not train, such as other"):
        optim.load_flat(two, {"other:exp_avg": torch.zeros(1)})


class Measured(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.body = nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, batch, generator):
        return dict(loss=self.body(self.norm(batch["x"] + torch.rand(1))).square().mean())


@pytest.mark.parametrize(("width", "rows"), [(2, 4), (64, 256), (256, 16)])
def test_precision_is_picked_by_processor_and_shape_without_a_trace(width, rows, monkeypatch):
    model, batch = Measured(width).eval(), dict(x=torch.randn(rows, width))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    for there in (False, True):  # whatever this machine is
        monkeypatch.setattr(optim, "has_bf16", lambda device, there=there: there)
        assert optim.pick_precision(model, batch, "cpu") == ("bf16" if there and width >= 128 else "fp32")
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_half_of_what_is_trained_must_be_wide():
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 8), nn.Conv2d(3, 64, 3))
    every = 128 * 128 + 128 * 8 + 3 * 64 * 9
    assert optim.share_of_wide(model, 128) == 128 * 128 / every and optim.share_of_wide(model, 8) == 1
    model[0].requires_grad_(False)
    assert optim.share_of_wide(model, 128) == 0 and optim.share_of_wide(model, 9) == 3 * 64 * 9 / (every - 128 * 128)


class Overflowing(nn.Module):
    """Wide, but without a finite loss there."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(1024, 1024)

    def forward(self, batch, generator):
        y = self.body(batch["x"])
        return dict(loss=y.square().mean() + (0.0 if y.dtype == torch.float32 else torch.inf))


def test_a_precision_without_a_finite_loss_is_not_picked(monkeypatch):
    monkeypatch.setattr(optim, "has_bf16", lambda device: True)
    fine, batch = Measured(1024), dict(x=torch.randn(8, 1024))
    assert optim.pick_precision(fine, batch, "cpu") == "bf16"
    assert optim.pick_precision(Overflowing(), dict(x=torch.randn(1024, 1024)), "cpu") == "fp32"
