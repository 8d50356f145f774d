"""Sequencer: LSTMs along columns and rows, at the picture size of training and at others."""

from __future__ import annotations

import torch

import plait
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.systems.vision.sequencer2d import BiLSTM2D


def test_a_token_hears_of_its_column_and_its_row_and_of_nothing_else():
    mixer, x = initialise(BiLSTM2D(6, 4)), torch.randn(1, 20, 6, requires_grad=True)
    y = mixer(Tokens(x, grid=(4, 5))).x.view(4, 5, 6)
    (heard,) = torch.autograd.grad(y[1, 3].sum(), x)
    reached = heard[0].abs().sum(1).view(4, 5) > 0
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[1], expected[:, 3] = True, True
    assert torch.equal(reached, expected)


@torch.no_grad()
def test_other_picture_sizes_are_read():
    model = plait.create_model("sequencer2d_toy").eval()
    for size in ((64, 40), (24, 80)):
        x = torch.rand(2, 3, *size)
        assert model.tokens(x).grid == (size[0] // 8, size[1] // 8)
        assert model(x).shape == (2, 10) and not torch.allclose(model(x), model(x.flip(0)))
