"""Several vectors of a text in one: the best pair, or the mean in which better pairs weigh more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.parts.objectives.contrastive import contrastive
from plait.parts.objectives.late import PLAIN, Late, kept


def drawn(rows: int, views: int, width: int, seed: int):
    return F.normalize(torch.randn(rows, views, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


SHARP = st.sampled_from([float("inf"), 0.0, 3.0, 50.0])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), SHARP)
def test_every_vector_is_compared_with_the_one_of_the_other_side(views, a, b, sharp):
    many, one = drawn(a, views, 6, 0), drawn(b, 1, 6, 1)
    how = Late(views, sharp)
    x, y = kept(many, views), kept(one, views)
    got = how(x, y)
    for i in range(a):
        for j in range(b):
            s = many[i] @ one[j, 0]
            want = s.max() if sharp == float("inf") or views == 1 else (sharp * s).softmax(0) @ s
            torch.testing.assert_close(got[i, j], want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(how(y, x), got.T, rtol=1e-5, atol=1e-6)
    n = min(a, b)
    torch.testing.assert_close(how.rows(x[:n], y[:n]), got.diagonal()[:n], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y.norm(dim=1), torch.ones(b))


def test_gradients_are_those_of_the_side_that_has_several():
    many, one = drawn(3, 4, 6, 0).requires_grad_(), drawn(5, 1, 6, 1).requires_grad_()
    weights = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    how = Late(4, 7.0)
    got = torch.autograd.grad((how(kept(many, 4), kept(one, 4)) * weights).sum(), (many, one))
    s = torch.einsum("ave,be->abv", F.normalize(many, dim=-1), F.normalize(one[:, 0], dim=-1))
    want = torch.autograd.grad(((((7 * s).softmax(-1) * s).sum(-1)) * weights).sum(), (many, one))
    for x, y in zip(got, want):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_with_one_view_it_is_the_product_and_the_usual_loss():
    a, b = drawn(4, 1, 8, 0)[:, 0], drawn(4, 1, 8, 1)[:, 0]
    assert torch.equal(Late(1)(a, b), a @ b.T) and Late(1) == PLAIN
    scale = torch.tensor([2.0])
    usual, late = (contrastive(a, b, scale, **how)["contrastive"] for how in ({}, {"compare": Late(1, 5.0)}))
    assert torch.equal(usual, late)
    with pytest.raises(ValueError, match="8 numbers, expected 3 of one length"):
        Late(3)(a, b)
