"""FiE: passages that meet in shared tokens, and one probability space over all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import plait
from plait.errors import PlaitError
from plait.systems.text.fie import answer_loss, answers
from tests.parity.compare import perturb


def example(rows=2, passages=3):
    g = torch.Generator().manual_seed(0)
    question, words = (
        torch.randint(5, 64, (rows, 6), generator=g),
        torch.randint(5, 64, (rows, passages, 9), generator=g),
    )
    keeps = torch.arange(9) < torch.tensor([9, 4, 7])[:passages, None]
    return question, torch.arange(6) < torch.tensor([6, 3])[:rows, None], words, keeps.expand(rows, -1, -1)


@pytest.fixture(scope="module")
def model():
    return perturb(plait.create_model("fie_toy"))


@torch.no_grad()
def test_passages_in_another_order_have_the_same_places(model):
    question, keep, words, keeps = example()
    order = torch.tensor([2, 0, 1])
    first = model.spans(question, keep, words, keeps)
    moved = model.spans(question, keep, words[:, order], keeps[:, order])
    torch.testing.assert_close(moved, first[:, order], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_places_of_all_passages_share_one_probability(model):
    question, keep, words, keeps = example()
    keeps = keeps.clone()
    keeps[1] = False  # a row without passages
    log = model.spans(question, keep, words, keeps)
    torch.testing.assert_close(log.exp().sum((1, 2, 3)), torch.tensor([1.0, 0.0]))
    begin, more = torch.arange(9)[:, None], torch.arange(4)
    real = keeps[0].sum(1)[:, None, None]
    assert torch.equal(log[0].isfinite(), begin + more < real)  # none goes on into the padding
    t = model.tokens(question, keep, words, keeps)
    both = model.places(t, 3, 9)[0]
    want = both[1, 2, 0] + both[1, 3, 1] - (both[0, 0, 0] + both[0, 2, 1])
    torch.testing.assert_close(log[0, 1, 2, 1] - log[0, 0, 0, 2], want)


@torch.no_grad()
def test_who_hears_of_whom():
    """In the first layer words see their own passage and shared tokens that have seen nothing yet; from the second on
    they hear of the others, and without shared tokens they never do."""
    question, keep, words, keeps = example()
    other = words.clone()
    other[:, 1] = other[:, 1].flip(-1)
    for shared, depth, hears in ((3, 1, False), (3, 2, True), (0, 2, False)):
        model = perturb(plait.create_model("fie_toy", shared=shared, depth=depth))
        first, second = (model.tokens(question, keep, x, keeps) for x in (words, other))
        places = [model.places(t, 3, 9) for t in (first, second)]
        same = [torch.allclose(*(p[:, i] for p in places), atol=1e-6) for i in range(3)]
        assert same == [not hears, False, not hears]
        if shared:  # these see all words of all passages at once
            assert not torch.allclose(first.x[:, :3], second.x[:, :3], atol=1e-6)
        third = words.clone()
        third[:, 0, 8] = 7  # a word of the first passage, which the others' padding is not
        t = model.tokens(question, keep, third.where(keeps, 9), keeps)
        u = model.tokens(question, keep, third.where(keeps, 11), keeps)
        torch.testing.assert_close(model.pooled(t), model.pooled(u))


def test_answers_that_read_alike_count_as_one():
    log = torch.full((1, 2, 3, 2), -torch.inf)
    log[0, 0, 0, 0], log[0, 1, 2, 0], log[0, 0, 1, 1] = (torch.tensor(p).log() for p in (0.3, 0.25, 0.45))
    words = torch.tensor([[[7, 8, 9], [5, 6, 7]]])
    (told,) = answers(log, words)
    assert [said for said, _ in told] == [(7,), (8, 9)] and told[0][1] == pytest.approx(0.55)
    right = torch.zeros_like(log, dtype=torch.bool)
    right[0, 0, 0, 0] = right[0, 1, 2, 0] = True
    assert answer_loss(log, right).item() == pytest.approx(-torch.tensor(0.55).log().item())
    nothing = torch.cat([right, torch.zeros_like(right)])  # rows that have no answer here teach nothing
    assert answer_loss(log.repeat(2, 1, 1, 1), nothing).item() == pytest.approx(answer_loss(log, right).item())


def test_gradients_are_finite_with_absent_passages_and_the_loss_teaches():
    model = plait.create_model("fie_toy").train()
    question, keep, words, keeps = example()
    keeps = keeps.clone()
    keeps[1, 2] = False
    right = torch.zeros(2, 3, 9, 4, dtype=torch.bool)
    right[:, 1, 2, 1] = right[0, 0, 3, 0] = True
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = answer_loss(model.spans(question, keep, words, keeps), right)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert loss.item() < 0.05


def test_what_does_not_fit_is_refused(model):
    question, keep, words, keeps = example()
    with pytest.raises(PlaitError, match="got the passages of 1 rows, expected those of 2"):
        model.spans(question, keep, words[:1], keeps[:1])
    with pytest.raises(PlaitError, match="a sequence of 18 tokens, but there are positions for 16"):
        model.spans(question, keep, F.pad(words, (0, 9)), F.pad(keeps, (0, 9)))
