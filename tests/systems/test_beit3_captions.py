"""BEiT-3 writes as the official code does: a masked word at the next place is asked what stands there."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.memory import Memory


@pytest.fixture(scope="module")
def model():
    made = plait.create_model("beit3_toy", seed=3).eval()
    with torch.no_grad():  # norms and biases that start at one and zero would hide their own absence
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return made


def batch(rows: int = 3) -> dict:
    return {"image": torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(2))}


@torch.no_grad()
def test_what_a_step_says_is_what_a_masked_word_after_the_text_says(model):
    ids, seen = torch.randint(5, 64, (3, 6), generator=torch.Generator().manual_seed(4)), batch()
    logits, _ = model.step(ids, model.prefill(seen))
    for n in range(1, 7):
        asked = torch.cat([ids[:, :n], torch.full((3, 1), model.mask)], 1)
        whole, _ = model.next_words(seen | {"text": asked})  # held to the official numbers by tests/parity
        torch.testing.assert_close(logits[:, n - 1], whole[:, n], rtol=1e-5, atol=1e-5)
    assert (logits[:, 0] - model.next_words(seen | {"text": ids})[0][:, 0]).abs().max() > 0.1  # the word's own scores


FORMS = (Memory.laid_out, Memory.fixed)


@torch.no_grad()
def test_masked_words_are_forgotten_in_memories_that_grow_and_that_are_laid_out(model):
    ids, cache = torch.randint(5, 64, (2, 4), generator=torch.Generator().manual_seed(4)), model.prefill(batch(2))
    held, others = cache.memory.keep.shape[1], [cache._replace(memory=m(cache.memory, 40)) for m in FORMS]
    for i in range(4):
        logits, cache = model.step(ids[:, i : i + 1], cache)
        assert cache.memory.keep.shape[1] == held + i + 1
        for k, other in enumerate(others):
            got, others[k] = model.step(ids[:, i : i + 1], other)
            torch.testing.assert_close(got, logits, rtol=1e-5, atol=1e-5)
            assert others[k].memory.start == held + i + 1 == others[k].memory.keep[0].sum()


def test_a_size_without_the_head_says_so():
    model = plait.create_model("beit3_toy", captions=False).eval()
    with pytest.raises(ValueError, match="captions=True"):
        model.step(torch.zeros(1, 1, dtype=torch.int64), model.prefill(batch(1)))
