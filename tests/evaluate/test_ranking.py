"""Retrieval against a slow, literal oracle: every tie is put into every order, and the places are averaged."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.evaluate import ranking as R
from plait.evaluate.metrics import retrieval, retrieval_chance


def expected_ranks(scores, right):
    """Expected rank of the j-th right item over all orders of equal scores, by enumeration."""
    places, before = [], 0
    for value in sorted(set(scores), reverse=True):
        tied = [bool(r) for s, r in zip(scores, right) if s == value]
        orders = [[i + 1 for i, r in enumerate(order) if r] for order in itertools.permutations(tied)]
        places += [before + float(np.mean(column)) for column in zip(*orders)]
        before += len(tied)
    return places


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 7), st.integers(1, 3))
def test_ranks_equal_the_oracle_with_ties_and_several_right_items(seed, Q, count, groups):
    rng = np.random.default_rng(seed)
    items = rng.integers(0, groups, count)
    queries = rng.choice(items, Q)
    scores = rng.integers(0, 4, (Q, count)).astype(float)
    got = R.retrieval_rows(scores, (queries, items))
    for q in range(Q):
        places = expected_ranks(scores[q], items == queries[q])
        assert got.first[q] == pytest.approx(places[0])
        assert got.precision[q] == pytest.approx(np.mean([(j + 1) / place for j, place in enumerate(places)]))


def test_without_ties_average_precision_is_scikit_learns():
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    items, queries, scores = rng.integers(0, 8, 200), np.arange(8), rng.normal(size=(8, 200))
    got = R.retrieval_rows(scores, (queries, items))
    assert got.precision == pytest.approx([sk.average_precision_score(items == q, scores[q]) for q in queries])


def test_scores_follow_from_the_ranks():
    rng = np.random.default_rng(1)
    ids, scores = np.arange(300), rng.normal(size=(300, 300)) + 2.5 * np.eye(300)
    ranks = (-scores).argsort(1).argsort(1)[ids, ids] + 1
    got = {s.name: s for s in retrieval(scores, (ids, ids))}
    assert list(got) == ["recall@1", "recall@5", "recall@10", "median rank", "mean average precision"]
    for k in (1, 5, 10):
        assert got[f"recall@{k}"].value == pytest.approx(np.mean(ranks <= k))
    median = got["median rank"]
    assert median.value == np.median(ranks) and median.low <= median.value <= median.high and median.better == "lower"
    assert got["mean average precision"].value == pytest.approx(np.mean(1 / ranks))


def test_blocks_and_vectors_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    # whole numbers: products are exact, ties are many
    queries, items = rng.integers(-2, 3, (40, 3)), rng.integers(-2, 3, (60, 3))
    ids = rng.integers(0, 60, 40), np.arange(60)
    whole = R.retrieval_rows(queries @ items.T, ids)
    monkeypatch.setattr(R, "BLOCK", 130)
    parts = R.retrieval_rows((queries, items), ids)
    assert (whole.first == parts.first).all() and (whole.precision == parts.precision).all()


def test_a_model_that_scores_everything_alike_gains_nothing():
    ids = np.arange(101)
    got = {s.name: s.value for s in retrieval(np.zeros((101, 101)), (ids, ids))}
    assert got["recall@10"] == 0 and got["median rank"] == 51


def test_the_median_ranks_interval_covers():
    rng = np.random.default_rng(3)
    queries, items, held = np.zeros(60, int), np.arange(40), []
    for _ in range(300):
        score = retrieval(rng.random((60, 40)), (queries, items))[3]
        held.append(score.low <= 20.5 <= score.high)
    assert 0.93 <= np.mean(held) <= 1


@pytest.mark.parametrize(
    "items, queries",
    [
        (np.arange(30), np.arange(30)),
        (np.repeat(np.arange(6), 5), np.arange(6)),
        (np.array([0, 1, 1, 2, 2, 2, 2, 3, 4, 5, 6, 7]), np.array([0, 1, 2, 2])),
        (np.array([0, 0, 0, 1]), np.array([0, 1])),
    ],
)
def test_chance_equals_simulation(items, queries):
    rng = np.random.default_rng(0)
    many = np.tile(queries, 30_000 // len(queries))
    seen = {s.name: s.value for s in retrieval(rng.random((len(many), len(items))), (many, items))}
    for name, value in retrieval_chance(queries, items).items():
        assert seen[name] == pytest.approx(value, abs=1 if name == "median rank" else 0.012), name


def test_chance_of_one_right_item_is_k_in_n():
    chance = retrieval_chance(np.arange(200), np.arange(200))
    assert [chance[f"recall@{k}"] for k in (1, 5, 10)] == pytest.approx([0.005, 0.025, 0.05])
    assert chance["median rank"] == 100.5
    assert chance["mean average precision"] == pytest.approx(np.mean(1 / np.arange(1, 201)))


@pytest.mark.parametrize(
    "scores, ids, message",
    [
        (np.zeros((2, 3)), (np.array([0, 9]), np.arange(3)), "1 of 2 queries without a right item"),
        (np.zeros((2, 3)), (np.arange(2), np.arange(4)), "one id for each"),
        (np.full((2, 2), np.nan), (np.arange(2), np.arange(2)), "got 4 NaN"),
        ((np.ones((2, 3)), np.ones((2, 4))), (np.arange(2), np.arange(2)), r"\(queries, D\)"),
        (
            (np.ones((2, 3)), np.full((2, 3), np.inf)),
            (np.arange(2), np.arange(2)),
            "got 6 NaN or infinite values of 6 in the item vectors",
        ),
        (np.zeros((2, 2)), (np.array([0.0, 1]), np.arange(2)), "expected integers"),
    ],
)
def test_bad_input_is_named(scores, ids, message):
    with pytest.raises(ValueError, match=message):
        retrieval(scores, ids)
