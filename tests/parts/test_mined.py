"""Negatives that were mined, and those of all processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from plait.parts.objectives.gathered import gathered
from plait.parts.objectives.mined import mined
from tests.parts.gathering import CASES
from tests.processes import both


def vectors(rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, dict]:
    """What `gathering.py` measured."""
    folder = tmp_path_factory.mktemp("gathering")
    return both("tests.parts.gathering", folder)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradient_of_one_large_batch(rows, case):
    """By the weights that the training loop gives uneven parts; and it would be another with each part's own negatives
    alone."""
    row = rows[case]
    assert row["apart"] < 1e-5 and math.isclose(row["one"], row["two"], rel_tol=1e-5, abs_tol=1e-6), row
    if case != "fewer rows than processes":
        assert row["unshared"] > 0.05, row


def test_one_process_gathers_nothing():
    x = vectors(3, 0)
    assert gathered(x) is x


def test_each_row_must_tell_its_own_answer_from_what_was_mined():
    """The loss is the cross-entropy over all answers and all that is wrong, in one direction."""
    a, b, wrong, scale = vectors(5, 0), vectors(5, 1), vectors(3, 2), torch.tensor([3.0])
    same, there = torch.eye(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    found = mined(a, b, wrong, scale, same, there, torch.ones(5, 3, dtype=torch.bool))["mined"]
    expected = F.cross_entropy(scale.exp() * a @ torch.cat([b, wrong]).T, torch.arange(5))
    torch.testing.assert_close(found, expected)
    none = mined(a, b, wrong, scale, same, there, torch.zeros(5, 3, dtype=torch.bool))["mined"]
    torch.testing.assert_close(none, F.cross_entropy(scale.exp() * a @ b.T, torch.arange(5)))


def test_what_may_not_be_wrong_has_no_say():
    """Of a row's negatives that are hidden, of absent rows and of duplicates nothing is learnt."""
    a, b, wrong, scale = vectors(4, 0), vectors(4, 1), vectors(2, 2), torch.tensor([2.0])
    same, there = torch.eye(4, dtype=torch.bool), torch.tensor([True, True, True, False])
    same[0, 1] = same[1, 0] = True
    may = torch.tensor([[True, False], [True, True], [False, True], [True, True]])
    leaves = [x.clone().requires_grad_() for x in (a, b, wrong)]
    found = mined(*leaves, scale, same, there, may)["mined"]
    seen = [[0, 1, 2, 4], [0, 1, 2, 4, 5], [0, 1, 2, 5]]
    right = [[0, 1], [0, 1], [2]]
    scores = scale.exp() * a @ torch.cat([b, wrong]).T
    logs = [dict(zip(s, row[s].log_softmax(0))) for s, row in zip(seen, scores)]
    expected = -sum(sum(log[i] for i in r) / len(r) for log, r in zip(logs, right)) / 3
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found, leaves)
    assert not grads[0][3].any() and not grads[1][3].any() and all(g.isfinite().all() for g in grads)
    hidden = torch.zeros_like(may)
    assert not torch.autograd.grad(mined(*leaves, scale, same, there, hidden)["mined"], leaves)[2].any()


def test_nobody_asks():
    nobody = torch.zeros(3, dtype=torch.bool)
    args = vectors(3, 0), vectors(3, 1), vectors(2, 2), torch.tensor([2.0]), torch.eye(3, dtype=torch.bool), nobody
    assert float(mined(*args, torch.ones(3, 2, dtype=torch.bool))["mined"]) == 0.0
