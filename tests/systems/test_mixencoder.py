"""MixEncoder: a question is read once, whatever may answer it, and answers do not touch one another."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.errors import PlaitError


@pytest.fixture(scope="module")
def model():
    return plait.create_model("mixencoder_toy", meets=2).eval()


def example(answers=5):
    g = torch.Generator().manual_seed(0)
    ids, texts = torch.randint(5, 64, (3, 12), generator=g), torch.randint(5, 64, (answers, 9), generator=g)
    keeps = torch.arange(9) < torch.tensor([9, 4, 7, 2, 5])[:answers, None]
    return ids, torch.arange(12) < torch.tensor([12, 7, 4])[:, None], texts, keeps


@torch.no_grad()
def test_many_answers_have_the_scores_that_each_has_alone(model):
    ids, keep, texts, keeps = example()
    x = model.store(texts, keeps).expand(3, -1, -1, -1)
    together = model.scores(ids, keep, x)
    alone = torch.cat([model.scores(ids, keep, x[:, i : i + 1]) for i in range(5)], 1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together.std(1) > 1e-3).all()  # they differ


@torch.no_grad()
def test_the_question_is_read_once_and_as_it_is_without_answers(model):
    ids, keep, texts, keeps = example()
    rows = []
    hook = model.stack.blocks[0].mix.f.register_forward_hook(lambda m, given, out: rows.append(out.x.shape[0]))
    x = model.store(texts, keeps).expand(3, -1, -1, -1)
    rows.clear()
    t, _, _ = model.ask(ids, keep, x)
    hook.remove()
    assert rows == [3]
    torch.testing.assert_close(t.x, model.stack(model.text_embedding(ids, keep)).x)


@torch.no_grad()
def test_what_is_kept_of_a_text_hears_of_the_question(model):
    ids, keep, texts, keeps = example()
    x = model.store(texts, keeps)
    assert x.shape == (5, 2, 32)
    _, told, mean = model.ask(ids, keep, x.expand(3, -1, -1, -1))
    assert not torch.allclose(mean, x.mean(1).expand(3, -1, -1), atol=1e-3)
    _, other, moved = model.ask(ids.flip(1), keep, x.expand(3, -1, -1, -1))
    assert not torch.allclose(other, told, atol=1e-3) and not torch.allclose(moved, mean, atol=1e-3)
    with pytest.raises(PlaitError, match="got vectors for 5 questions, expected 3"):
        model.scores(ids, keep, x[:, None])
