"""Losses of several right answers: what they reduce to, what adds up, what is left out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.parts.objectives.multilabel import asked, decoupled_softmax, soft_topk, soft_topk_loss


def scores(rows: int, labels: int, seed: int = 0, dtype=torch.float32):
    return 5 * torch.randn(rows, labels, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_with_one_right_answer_it_is_infonce():
    s, right = scores(6, 9), F.one_hot(torch.tensor([3, 1, 4, 1, 5, 8]), 9).bool()
    want = F.cross_entropy(s, right.int().argmax(1))
    assert float(decoupled_softmax(s, right, ~right)) == pytest.approx(float(want), abs=1e-6)


def test_right_answers_do_not_push_each_other_away():
    s = scores(4, 8).requires_grad_()
    right = torch.zeros(4, 8, dtype=torch.bool)
    right[:, :3] = True
    decoupled_softmax(s, right, ~right).backward()
    assert (s.grad[:, :3] < 0).all() and (s.grad[:, 3:] > 0).all()
    by_hand = sum(
        -F.log_softmax(torch.cat([s[i, j : j + 1], s[i, 3:]]), 0)[0] for i in range(4) for j in range(3)
    )  # fmt: skip
    assert decoupled_softmax(s, right, ~right).item() == pytest.approx(by_hand.item() / 12, rel=1e-5)


def test_what_is_neither_says_nothing_and_a_row_without_answers_counts_for_nothing():
    s = scores(3, 5).requires_grad_()
    right = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).bool()
    wrong = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()
    loss = decoupled_softmax(s, right, wrong)
    loss.backward()
    assert s.grad.isfinite().all() and not s.grad[0, 3:].any() and not s.grad[1:].any()
    assert loss.item() == pytest.approx(-F.log_softmax(s[0, :3], 0)[0].item() / 2, abs=1e-6)
    assert decoupled_softmax(s, torch.zeros_like(right), wrong).item() == 0


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.floats(0.5, 20), st.integers(0, 9), st.floats(0.01, 100))
def test_sigmoids_add_up_to_k_in_the_order_of_the_scores(n, k, seed, size):
    x = size * scores(3, n, seed, torch.float64)
    y = soft_topk(x, k)
    assert float((y.sum(1) - min(k, 0.999 * n)).abs().max()) < 1e-5
    assert (y.gather(1, x.argsort(1)).diff(dim=1) >= -1e-12).all()


def test_gradients_are_those_of_the_threshold():
    x, there = scores(3, 6, dtype=torch.float64), torch.ones(3, 6, dtype=torch.bool)
    there[1, 4:] = False
    assert torch.autograd.gradcheck(lambda x: soft_topk(x / 5, 2.0, there), x.requires_grad_())
    assert not soft_topk(x, 2.0, there)[1, 4:].any()
    with pytest.raises(ValueError, match="k: got 0"):
        soft_topk(x, 0)


def test_the_loss_falls_where_right_answers_are_among_the_greatest():
    right = torch.tensor([[1, 1, 0, 0, 0, 0]]).bool()
    there = torch.ones_like(right)
    good, bad = torch.tensor([[5.0, 4, 0, 0, 0, 0]]), torch.tensor([[5.0, 0, 4, 0, 0, 0]])
    assert soft_topk_loss(good, right, there, 2) < 0.2 < 1 < soft_topk_loss(bad, right, there, 2)
    assert soft_topk_loss(bad, right, there, 3) < soft_topk_loss(bad, right, there, 2)


def test_what_a_batch_says_of_each_others_answers():
    """Texts a, a, b, c with labels x, y, x, z: a has x and y, b has x, which a chain joins; c knows only z."""
    ask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    answer = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).bool()
    right, wrong = asked(ask, answer, torch.tensor([0, 0, 0, 7]))
    assert right.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert wrong.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 0]]
