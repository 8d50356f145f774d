"""Names are found as scoring each of them would, and those of like texts begin alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.errors import PlaitError
from plait.parts.docids import semantic_ids
from plait.parts.generation import Trie
from plait.parts.recall import recall

NAMES = st.lists(st.lists(st.integers(4, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=9, unique=True)


@pytest.fixture(scope="module")
def model():
    model = plait.create_model("dsi_toy", seed=1).eval()
    with torch.no_grad():
        model.words.table.weight.mul_(4)  # no name is nearly as likely as another
    return model


def asked() -> dict:
    ids = torch.randint(4, 64, (3, 7), generator=torch.Generator().manual_seed(0))
    return {"text": ids, "keep": {"text": torch.arange(7) < torch.tensor([[7], [4], [1]])}}


@torch.no_grad()
def worth(model, batch: dict, name: tuple[int, ...]) -> torch.Tensor:
    """(B,): the log-probability of one name with its end."""
    ids = torch.tensor([model.begin, *name, model.end]).expand(len(batch["text"]), -1)
    logs = model.step(ids[:, :-1], model.prefill(batch))[0].log_softmax(-1)
    return logs.gather(2, ids[:, 1:, None])[..., 0].sum(1)


@settings(max_examples=40, deadline=None)
@given(names=NAMES, more=st.integers(0, 3))
def test_as_many_beams_as_names_find_what_scoring_all_of_them_gives(model, names, more):
    batch, size = asked(), len(names) + more
    tokens, scores = recall(model, batch, Trie(names, model.end), size)
    want = torch.stack([worth(model, batch, name) for name in names], 1)  # (B, A)
    best, order = want.sort(1, descending=True)
    torch.testing.assert_close(scores[:, : len(names)], best, rtol=1e-4, atol=1e-4)
    assert (scores[:, len(names) :] == -torch.inf).all()
    for row in range(3):
        told = [tuple(t for t in text if t)[:-1] for text in tokens[row, : len(names)].tolist()]
        assert sorted(told) == sorted(names)
        alike = (best[row].diff().abs() > 1e-4).all()  # where two are as likely, either is first
        assert not alike or told == [names[i] for i in order[row]]


def test_few_beams_find_only_names_that_exist(model):
    names = [(a, b, c) for a in range(4, 9) for b in range(4, 9) for c in range(4, 9)]
    tokens, scores = recall(model, asked(), Trie(names, model.end), 4)
    for row in range(3):
        told = [tuple(t for t in text if t)[:-1] for text in tokens[row].tolist()]
        assert len(set(told)) == 4 and set(told) <= set(names)
        for name, score in zip(told, scores[row]):
            torch.testing.assert_close(score, worth(model, asked(), name)[row], rtol=1e-4, atol=1e-4)
    assert (scores.diff(dim=1) <= 0).all()
    with pytest.raises(PlaitError, match="got 0 beams"):
        recall(model, asked(), Trie(names, model.end), 0)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 60), branch=st.integers(2, 5), leaf=st.integers(1, 8), copies=st.booleans(), seed=st.integers(0, 9)
)
def test_semantic_names_differ_and_are_no_longer_than_they_must(n, branch, leaf, copies, seed):
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    if copies:
        vectors[:] = vectors[0]
    names = semantic_ids(vectors, branch=branch, leaf=leaf)
    assert len(set(names)) == n and semantic_ids(vectors, branch=branch, leaf=leaf) == names
    parts = [tuple(map(int, name.split())) for name in names]
    assert all(p < branch for name in parts for p in name[:-1]) and all(name[-1] < leaf for name in parts)
    assert not any(a != b and b[: len(a)] == a for a in parts for b in parts)  # none is the beginning of another


def test_texts_of_a_cluster_have_names_that_begin_alike():
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(4, 8)) * 30
    fine = coarse[:, None] + rng.normal(size=(4, 4, 8)) * 3
    vectors = (fine[:, :, None] + rng.normal(size=(4, 4, 6, 8)) * 0.1).reshape(-1, 8)
    names = [name.split() for name in semantic_ids(vectors, branch=4, leaf=8)]
    assert {len(name) for name in names} == {3}
    for depth, each in ((1, 24), (2, 6)):
        starts = [tuple(name[:depth]) for name in names]
        groups = [set(starts[i : i + each]) for i in range(0, 96, each)]
        assert all(len(group) == 1 for group in groups) and len(set.union(*groups)) == 96 // each


def test_what_is_no_matrix_of_numbers_is_refused():
    for bad in (np.zeros((0, 3)), np.zeros(3), np.full((2, 2), np.nan)):
        with pytest.raises(PlaitError, match="expected vectors"):
            semantic_ids(bad)
    with pytest.raises(PlaitError, match="branch=1"):
        semantic_ids(np.zeros((2, 2)), branch=1)
