"""A mixture of experts: who goes where, how much room there is, and what it is when there is but one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plait.core.block import FeedForward
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.parts.experts import MixtureOfExperts, places, room


def made(experts: int, chosen: int, **options) -> MixtureOfExperts:
    with torch.device("meta"):
        mixture = MixtureOfExperts(16, 32, experts=experts, chosen=chosen, **options)
    return initialise(mixture, seed=3).eval()


def by_hand(gates: np.ndarray, there: np.ndarray, chosen: int, capacity: int, first: bool) -> np.ndarray:
    """The slots of one group (S, K), token after token."""
    count, experts = gates.shape
    picks = np.argsort(-gates, 1, kind="stable")[:, :chosen]
    order = sorted(range(count), key=lambda s: -gates[s].max()) if first else list(range(count))
    taken, slots = [0] * experts, np.full((count, chosen), experts * capacity)
    for k in range(chosen):
        for s in order:
            e = picks[s, k]
            if there[s] and taken[e] < capacity:
                slots[s, k], taken[e] = e * capacity + taken[e], taken[e] + 1
    return slots


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("chosen, capacity", [(1, 3), (2, 5), (3, 40)])
def test_places_are_given_as_by_hand(chosen, capacity, first):
    rng = np.random.default_rng(0)
    gates = rng.dirichlet(np.array([3.0, 1.0, 1.0, 0.3]), (4, 30)).astype(np.float32)
    there = rng.random((4, 30)) < 0.8
    slot, weight = places(torch.from_numpy(gates), torch.from_numpy(there), chosen, capacity, first=first)
    for g in range(4):
        want = by_hand(gates[g], there[g], chosen, capacity, first)
        assert np.array_equal(slot[g].numpy(), want)
        held = np.bincount(want[want < 4 * capacity] // capacity, minlength=4)
        asked = np.bincount(np.argsort(-gates[g], 1)[there[g], :chosen].ravel(), minlength=4)
        assert np.array_equal(held, np.minimum(asked, capacity))  # an expert is full, or nobody was sent away
        assert len(set(want[want < 4 * capacity])) == (want < 4 * capacity).sum()
    assert torch.equal(weight, torch.from_numpy(gates).topk(chosen).values)


@pytest.mark.parametrize(
    "tokens, experts, chosen, factor, want",
    [
        (50, 8, 2, 1.05, 14),
        (50, 8, 2, 1.0, 13),
        (48, 8, 1, 1.0, 6),
        (50, 8, 2, 4.0, 50),
        (50, 8, 2, 9.0, 50),
        (3, 8, 1, 1.0, 1),
    ],
)
def test_room_is_the_even_share_rounded_up_and_never_more_than_all(tokens, experts, chosen, factor, want):
    assert room(tokens, experts, chosen, factor) == want


@torch.no_grad()
def test_one_expert_is_the_dense_step():
    mixture, dense = made(1, 1), FeedForward(16, 32)
    for ours, theirs in (("up", "up"), ("down", "down")):
        getattr(dense, theirs).weight.copy_(getattr(mixture.experts, ours)[0].mT)
        getattr(dense, theirs).bias.copy_(getattr(mixture.experts, f"{ours}_bias")[0].normal_())
    t = Tokens(torch.randn(3, 11, 16))
    for module in (mixture, mixture.train()):
        torch.testing.assert_close(module(t).x, dense(t).x, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_token_is_the_sum_of_its_experts_and_nothing_where_there_is_no_room():
    mixture, t = made(4, 2, spare=0.5), Tokens(torch.randn(2, 12, 16))
    gates, losses = mixture.router(t.x, torch.ones(2, 12, dtype=torch.bool))
    assert losses == {}
    capacity = room(12, 4, 2, 0.5)
    slot, weight = places(gates, torch.ones(2, 12, dtype=torch.bool), 2, capacity, first=True)
    want = torch.zeros(2, 12, 16)
    for g in range(2):
        for s in range(12):
            for k in range(2):
                if slot[g, s, k] < 4 * capacity:
                    expert = int(slot[g, s, k]) // capacity
                    x = t.x[g, s].expand(4, 1, 16)
                    want[g, s] += weight[g, s, k] * mixture.experts(x)[expert, 0]
    torch.testing.assert_close(mixture(t).x, want, rtol=1e-5, atol=1e-6)
    assert (want == 0).all(2).any() and not (want == 0).all()


@torch.no_grad()
def test_padding_takes_no_place_and_rows_do_not_compete():
    mixture, x = made(4, 2, spare=0.6), torch.randn(3, 12, 16)
    keep = torch.arange(12) < torch.tensor([12, 7, 3])[:, None]
    whole = mixture(Tokens(x, keep=keep)).x
    loud = mixture(Tokens(x.masked_fill(~keep[..., None], 50.0), keep=keep)).x
    torch.testing.assert_close(whole[keep], loud[keep])
    for row in range(3):
        torch.testing.assert_close(mixture(Tokens(x[row : row + 1], keep=keep[row : row + 1])).x[0], whole[row])
    with pytest.raises(ValueError, match="lengths"):
        mixture(Tokens(x[:1], lengths=(5, 7)))


def test_in_training_a_batch_competes_and_the_losses_say_who_is_idle():
    mixture, t = made(4, 1, capacity=1.0).train(), Tokens(torch.randn(6, 10, 16))
    out = mixture(t)
    assert set(out.losses) == {"importance", "load"} and all(loss > 0 for loss in out.losses.values())
    sum(out.losses.values()).backward()
    assert mixture.router.score.weight.grad.abs().sum() > 0
    with torch.no_grad():
        mixture.router.score.weight.zero_()
        even = mixture(t).losses
        mixture.router.score.weight[0] = 5 * t.x.mean((0, 1)) / t.x.mean((0, 1)).square().sum()
        t = t.replace(x=t.x.mean((0, 1)) + 0.1 * t.x)
        uneven = mixture(t).losses
    assert float(even["importance"]) < 1e-9 and float(uneven["importance"]) > 0.01 > 100 * float(even["importance"])
    assert float(uneven["load"]) > 10 * float(even["load"])
