"""Rotary positions on a grid against their definition by complex numbers."""

from __future__ import annotations

import pytest
import torch

from plait.core.init import initialise
from plait.parts.positions.rotary import GridRotary, turn


def rotary(width: int, base: float = 10_000.0) -> GridRotary:
    with torch.device("meta"):
        made = GridRotary(width, base)
    return initialise(made)


def test_each_pair_is_turned_as_a_complex_number():
    (rows, columns), width, g = (3, 5), 16, torch.Generator().manual_seed(0)
    x = torch.randn(2, rows * columns, 4, width, generator=g, dtype=torch.float64)
    pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :])
    for place in range(rows * columns):
        for i in range(width // 2):
            where = place // columns if i < width // 4 else place % columns
            angle = torch.tensor(where * 10_000.0 ** -((i % (width // 4)) / (width // 4)), dtype=torch.float64)
            pairs[:, place, :, i] *= torch.polar(torch.tensor(1.0, dtype=torch.float64), angle)
    ours = turn(x, rotary(width)((rows, columns)).double())
    torch.testing.assert_close(ours, torch.cat([pairs.real, pairs.imag], -1), rtol=1e-5, atol=1e-6)


def test_products_know_only_how_far_apart_two_places_are():
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(8, generator=g), torch.randn(8, generator=g)
    turns = rotary(8)((6, 6))
    q, k = (
        turn(q.expand(1, 36, 8), turns)[0].unflatten(0, (6, 6)),
        turn(k.expand(1, 36, 8), turns)[0].unflatten(0, (6, 6)),
    )
    products = torch.einsum("abe,cde->abcd", q, k)
    torch.testing.assert_close(products[1:, 2:, 1:, 2:], products[:-1, :-2, :-1, :-2], rtol=1e-4, atol=1e-5)
    assert (products[0, 0, 0, 1:] - products[0, 0, 0, :-1]).abs().min() > 1e-4
    assert (products[0, 0, 1:, 0] - products[0, 0, :-1, 0]).abs().min() > 1e-4


def test_turning_keeps_lengths_and_takes_rows_of_their_own():
    x, turns = torch.randn(2, 6, 3, 8), rotary(8)((2, 3))
    torch.testing.assert_close(turn(x, turns).norm(dim=-1), x.norm(dim=-1))
    other = turns.flip(0)
    both = turn(x, torch.stack([turns, other]))
    torch.testing.assert_close(both, torch.cat([turn(x[:1], turns), turn(x[1:], other)]))


def test_heads_of_a_width_that_does_not_divide_raise():
    with pytest.raises(ValueError, match="multiple of 4"):
        GridRotary(10)
