"""Dual-Cross-Encoder: a text is kept behind each of several questions, and a question is read alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import plait
from plait.errors import PlaitError
from plait.parts.objectives.late import late
from plait.parts.towers.sentences import cls, joined
from plait.systems.text.dual_cross_encoder import objective, pieces
from tests.parity.compare import perturb

SLOTS = {"text_0": dict(kind="text", vocab=64), "text_1": dict(kind="text", vocab=64)}


def texts(rows: int, *lengths: int, seed: int = 0):
    ids = torch.randint(5, 64, (rows, max(lengths)), generator=torch.Generator().manual_seed(seed))
    count = torch.tensor(lengths)[torch.arange(rows) % len(lengths), None]
    keep = torch.arange(max(lengths)) < count
    ids[:, 0] = 2
    ids = ids.scatter(1, count - 1, 3).masked_fill(~keep, 0)
    return ids, keep


@pytest.fixture(scope="module")
def model():
    return perturb(plait.create_model("dual_cross_encoder_toy", slots=SLOTS))


def test_two_texts_are_one_that_begins_once():
    (a, keep), (b, keeps) = texts(2, 4, 3), texts(2, 6, 5, seed=1)
    ids, there, second = joined(a, keep, b, keeps, 16)
    for row, (n, m) in enumerate(((4, 6), (3, 5))):
        assert ids[row, there[row]].tolist() == [*a[row, :n].tolist(), *b[row, 1:m].tolist()]
        assert int(second[row].sum()) == m - 1 and bool(second[row, n : n + m - 1].all())
    alone, there, second = joined(a, keep & False, b, keeps, 5)
    assert torch.equal(alone, b[:, :5]) and torch.equal(second, there)


@torch.no_grad()
def test_without_questions_it_is_the_dual_encoder(model):
    text, keeps = texts(3, 9, 6)
    asks, keep = texts(6, 4)
    none = model.store(asks.view(3, 2, 4), (keep & False).view(3, 2, 4), text, keeps)
    torch.testing.assert_close(none, model(text, keeps))
    found = model.store(asks.view(3, 2, 4), keep.view(3, 2, 4), text, keeps)
    assert found.shape == none.shape and not torch.allclose(found, none, atol=1e-3)
    some = model.store(asks.view(3, 2, 4), keep.view(3, 2, 4) & torch.tensor([True, False])[:, None], text, keeps)
    first, second = (late(model).apart(x) for x in (some, none))
    torch.testing.assert_close(first[:, 1], second[:, 1])
    torch.testing.assert_close(first[:, 0], late(model).apart(found)[:, 0])


@torch.no_grad()
def test_the_score_is_that_of_the_best_view_and_padding_says_nothing(model):
    (q, keep), (text, keeps), (asks, there) = texts(2, 5, 4), texts(3, 9, 6), texts(6, 4, 3)
    kept = model.store(asks.view(3, 2, 4), there.view(3, 2, 4), text, keeps)
    views = torch.stack([model.view(asks[i::2], there[i::2], text, keeps) for i in (0, 1)], 1)
    want = torch.einsum("ae,bve->abv", F.normalize(cls(model.tokens(q, keep)), dim=-1), F.normalize(views, dim=-1))
    torch.testing.assert_close(late(model)(model(q, keep), kept), want.amax(2), rtol=1e-5, atol=1e-5)
    wide = model.view(F.pad(asks[::2], (0, 3), value=9), F.pad(there[::2], (0, 3)), text, keeps)
    torch.testing.assert_close(wide, views[:, 0], rtol=1e-5, atol=1e-5)
    with pytest.raises(PlaitError, match="got 1 questions a text, expected 2"):
        model.store(asks[:3, None], there[:3, None], text, keeps)


def test_in_a_table_its_own_words_stand_in_the_place_of_questions():
    text, keeps = texts(3, 15, 5, 2)
    ids, there = pieces(text, keeps, 3)
    assert ids.shape == (3, 3, 10)
    assert ids[0, 0].tolist() == [2, *text[0, 1:9].tolist(), 3] and ids[0, 2].tolist() == [
        2,
        *text[0, 6:14].tolist(),
        3,
    ]
    assert ids[1, 0][there[1, 0]].tolist() == [2, *text[1, 1:4].tolist(), 3]  # it has no more
    assert not there[2].any()  # a beginning and an end, and no word


def test_a_text_is_right_for_its_question_only_if_it_fits_it():
    """Behind its own question every text is found by the question's words alone: so others are read behind it too."""
    model = plait.create_model("dual_cross_encoder_toy", slots=SLOTS).train()
    (q, keep), (text, keeps) = texts(8, 5), texts(8, 8, seed=1)
    batch = {"text_0": q, "text_1": text, "keep": {"text_0": keep, "text_1": keeps},
             "present": {"text_0": torch.ones(8, dtype=torch.bool), "text_1": torch.arange(8) != 7}}  # fmt: skip
    g = torch.Generator()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(model, batch, None, g)["views"]
        loss.backward()
        assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert loss.item() < 0.5
    model.eval()
    with torch.no_grad():
        asked = F.normalize(cls(model.tokens(q, keep)), dim=-1)
        score = [(asked * F.normalize(model.view(q, keep, text.roll(i, 0), keeps.roll(i, 0)), dim=-1)).sum(1)[:7]
                 for i in range(4)]  # fmt: skip
    assert (score[0] > torch.stack(score[1:]).amax(0)).float().mean() > 0.8
    alone = objective(model, batch | {"same": torch.zeros(8, dtype=torch.int64)}, None, g)["views"]
    assert alone.item() == pytest.approx(0.0, abs=1e-6)  # where all are right for all, none is wrong
