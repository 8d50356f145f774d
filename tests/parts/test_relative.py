"""Relative positions: one number per offset, the same wherever the pair stands."""

from __future__ import annotations

import torch

from plait.core.init import initialise
from plait.parts.positions.relative import RelativeBias, offsets


def test_each_offset_has_one_number_and_each_number_an_offset():
    h, w = 3, 4
    number, found = offsets((h, w)), {}
    for q in range(h * w):
        for k in range(h * w):
            found.setdefault((q // w - k // w, q % w - k % w), set()).add(int(number[q, k]))
    assert len(found) == (2 * h - 1) * (2 * w - 1) and all(len(numbers) == 1 for numbers in found.values())
    assert set().union(*found.values()) == set(range(len(found)))


def test_the_bias_reads_the_table_and_only_the_table_is_saved():
    bias = initialise(RelativeBias((2, 3), 4))
    assert list(bias.state_dict()) == ["table"]
    assert bias().shape == (1, 4, 6, 6)
    assert torch.equal(bias()[0, 1, 2, 5], bias.table[offsets((2, 3))[2, 5], 1])
    assert torch.equal(bias()[0, :, 0, 1], bias()[0, :, 4, 5]) and not torch.equal(
        bias()[0, :, 0, 1], bias()[0, :, 1, 0]
    )
