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


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from([float("inf"), 0.0, 3.0, 50.0]))
def test_every_pair_is_looked_at(views, a, b, sharp):
    one, other = drawn(a, views, 6, 0), drawn(b, views, 6, 1)
    how = Late(views, sharp)
    got = how(kept(one, views), kept(other, views))
    for i in range(a):
        for j in range(b):
            s = (one[i] @ other[j].T).flatten()
            want = s.max() if sharp == float("inf") or views == 1 else (sharp * s).softmax(0) @ s
            torch.testing.assert_close(got[i, j], want, rtol=1e-5, atol=1e-6)
    n = min(a, b)
    torch.testing.assert_close(how.rows(kept(one, views)[:n], kept(other, views)[:n]), got.diagonal()[:n])


@pytest.mark.parametrize("sharp", [float("inf"), 7.0])
def test_who_has_one_vector_repeats_it_and_nothing_changes(sharp):
    many, one = drawn(3, 4, 6, 0), drawn(5, 1, 6, 1)
    got = Late(4, sharp)(kept(many, 4), kept(one, 4))
    s = torch.einsum("ave,be->abv", many, one[:, 0])
    want = s.amax(-1) if sharp == float("inf") else ((sharp * s).softmax(-1) * s).sum(-1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kept(one, 4).norm(dim=1), torch.ones(5))


def test_with_one_view_it_is_the_product_and_the_usual_loss():
    a, b = drawn(4, 1, 8, 0)[:, 0], drawn(4, 1, 8, 1)[:, 0]
    assert torch.equal(Late(1)(a, b), a @ b.T) and Late(1) == PLAIN
    scale = torch.tensor([2.0])
    usual, late = (contrastive(a, b, scale, **how)["contrastive"] for how in ({}, {"compare": Late(1, 5.0)}))
    assert torch.equal(usual, late)
    with pytest.raises(ValueError, match="8 numbers, expected 3 of one length"):
        Late(3)(a, b)
