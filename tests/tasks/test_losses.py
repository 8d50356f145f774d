"""What a system's layers give out as losses reaches the trainer."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import plait
from plait.core.tokens import Tokens
from plait.tasks.bind import bind
from plait.tasks.rowwise import Answer
from tests.contract.examples import example


class Costly(nn.Module):
    """A part of a layer that adds a loss."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, t: Tokens) -> Tokens:
        return self.f(t).add_loss("cost", t.x.square().mean())


@pytest.mark.parametrize("name, role", [("vit_toy", "backbone"), ("swin_toy", "backbone"), ("auto_toy", "fuser")])
def test_the_loss_of_a_layer_is_trained(name, role):
    kinds = {"image": dict(kind="image", size=(32, 32))}
    model = plait.create_model(name, **({"slots": kinds} if role == "fuser" else {}))
    stack = model.fusion if role == "fuser" else next(m for m in model.modules() if hasattr(m, "blocks"))
    stack.blocks[0].feed.f = Costly(stack.blocks[0].feed.f)
    bound = bind(model, role, kinds)
    loss = partial(nn.functional.cross_entropy, reduction="none")
    answer = Answer(bound, ("kind",), torch.zeros(3), loss)
    batch = example(model)
    assert bound.features(batch).losses["cost"] > 0
    losses = answer({**batch, "target": {"kind": torch.tensor([0, 1, 2])}}, torch.Generator())
    assert set(losses) >= {"loss", "cost"} and losses["cost"].requires_grad
