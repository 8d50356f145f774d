"""A closed list of texts is ranked by how likely each is as a whole, and those that begin unlikely are left out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.errors import PlaitError
from plait.parts import generation
from plait.parts.generation import rank

TEXT = st.lists(st.integers(5, 63), min_size=1, max_size=5)


def listed(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, texts)) + 2
    ids = torch.tensor([[2, *t, 3] + [-1] * (longest - len(t) - 2) for t in texts])
    return ids.clamp(min=0), ids >= 0


def asked(rows: int = 3) -> dict:
    g = torch.Generator().manual_seed(0)
    return {"image": torch.randn(rows, 3, 32, 32, generator=g), "text": torch.randint(5, 64, (rows, 6), generator=g)}


@pytest.fixture(scope="module", params=["albef_toy", "git_toy"])
def model(request):
    return plait.create_model(request.param, seed=1).eval()


@torch.no_grad()
def alone(model, batch: dict, text: list[int]) -> torch.Tensor:
    """(B,): the log-probability of one text, word by word."""
    ids = torch.tensor([2, *text, 3]).expand(len(batch["image"]), -1)
    cache, total = model.prefill(batch), torch.zeros(len(ids))
    for i in range(ids.shape[1] - 1):
        logits, cache = model.step(ids[:, i : i + 1], cache)
        total = total + logits[:, 0].log_softmax(-1)[torch.arange(len(ids)), ids[:, i + 1]]
    return total


@settings(max_examples=12, deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=6, unique_by=tuple))
def test_all_of_a_list_is_ranked_as_each_is_worth_alone(model, texts):
    batch = asked()
    found = rank(model, batch, *listed(texts))
    worth = torch.stack([alone(model, batch, t) for t in texts], 1)  # (B, A)
    torch.testing.assert_close(found.score, worth.gather(1, found.answers), rtol=1e-4, atol=1e-4)
    assert (found.score.diff(dim=1) <= 0).all() and (found.answers.sort(1).values == torch.arange(len(texts))).all()


@torch.no_grad()
def test_what_begins_unlikely_is_left_out(model):
    batch, texts = asked(), [[7, 9], [11], [20, 30, 40], [33, 5], [50]]
    ids, keep = listed(texts)
    first = model.step(ids[:1, :1].expand(3, 1), model.prefill(batch))[0][:, 0]
    likely = first[:, ids[:, 1]].topk(2).indices.sort(1).values
    assert torch.equal(rank(model, batch, ids, keep, most=2).answers.sort(1).values, likely)


def test_long_lists_are_read_in_parts(model, monkeypatch):
    batch, (ids, keep) = asked(), listed([[7, 9], [11], [20, 30, 40], [33, 5], [50]])
    whole = rank(model, batch, ids, keep)
    monkeypatch.setattr(generation, "TOGETHER", 4)
    parts = rank(model, batch, ids, keep)
    assert torch.equal(parts.answers, whole.answers)
    torch.testing.assert_close(parts.score, whole.score)


def test_odd_lists_are_refused(model):
    ids, keep = listed([[7, 9], [11]])
    with pytest.raises(PlaitError, match="a beginning and a word"):
        rank(model, asked(), ids, keep & (torch.arange(4) < 1))
    ids[1, 0] = 9
    with pytest.raises(PlaitError, match="begin otherwise"):
        rank(model, asked(), ids, keep)
