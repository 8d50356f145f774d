"""Columns of a table to tokens."""

from __future__ import annotations

import pytest
import torch

from plait.core.init import initialise
from plait.parts.tokenizers.features import CategoryTokens, NumberTokens, VectorTokens


def test_numbers_are_affine_in_their_value_and_missing_ones_are_not_read():
    tokens = initialise(NumberTokens(3, 8))
    x = torch.tensor([[1.0, -2.0, float("nan")]])
    keep = torch.tensor([[True, True, False]])
    t = tokens(x, keep)
    torch.testing.assert_close(t.x[0, 1], -2 * tokens.weight[1] + tokens.bias[1])
    assert t.x.isfinite().all() and torch.equal(t.keep, keep)
    t.x.sum().backward()
    assert tokens.weight.grad.isfinite().all()


def test_categories_have_rows_of_their_own():
    tokens = initialise(CategoryTokens((2, 3), 8))
    everything = torch.stack([tokens(torch.tensor([[a, b]])).x[0] for a in range(2) for b in range(3)])
    assert len({tuple(v.tolist()) for v in everything.flatten(0, 1)}) == 5
    outside = tokens(torch.tensor([[2, 3], [-1, 99]])).x
    torch.testing.assert_close(outside, tokens(torch.zeros(2, 2, dtype=torch.long)).x, rtol=0, atol=0)
    assert list(tokens.state_dict()) == ["table"]


def test_a_vector_is_one_token():
    tokens = initialise(VectorTokens(6, 8))
    assert tokens(torch.randn(4, 6)).x.shape == (4, 1, 8)


@pytest.mark.parametrize("tokens", [NumberTokens(3, 8), CategoryTokens((2, 2, 2), 8), VectorTokens(3, 8)])
def test_the_wrong_number_of_columns_is_named(tokens):
    with pytest.raises(ValueError, match=r"expected \(B, 3\)"):
        tokens(torch.zeros(2, 4, dtype=torch.long if isinstance(tokens, CategoryTokens) else torch.float32))
