"""Gemma Encoder: both sides of every word, windows in every other layer, four ways to one vector."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import with_backend
from plait.systems.text.gemma_encoder import Capped

NAME = "gemma_encoder_toy"


def example():
    ids = torch.randint(5, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    return ids, torch.arange(12) < torch.tensor([12, 7, 3])[:, None]


@torch.no_grad()
def test_the_first_word_sees_the_last():
    model, (ids, _) = plait.create_model(NAME, window=99).eval(), example()
    other = ids.clone()
    other[:, -1] = (other[:, -1] - 4) % 59 + 5
    assert ((model.tokens(ids).x - model.tokens(other).x).abs().amax(-1) > 1e-6).all()


@torch.no_grad()
def test_every_other_layer_sees_as_far_as_its_window_on_both_sides():
    model, (ids, _) = plait.create_model(NAME, depth=1, window=4).eval(), example()
    other = ids.clone()
    other[:, 6] = (other[:, 6] - 4) % 59 + 5
    moved = ((model.tokens(ids).x - model.tokens(other).x).abs().amax(-1) > 1e-6).all(0)
    assert moved.tolist() == [abs(i - 6) <= 4 for i in range(12)]
    deep = plait.create_model(NAME, depth=2, window=4).eval()  # the second sees all
    assert (deep.tokens(ids).x != deep.tokens(other).x).any(-1).all()


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "question"])
def test_a_vector_is_read_of_the_words_that_are_there(pooling):
    model, (ids, keep) = plait.create_model(NAME, pooling=pooling, num_classes=0).eval(), example()
    x = model.tokens(ids, keep).x
    for row, n in enumerate(keep.sum(1)):
        torch.testing.assert_close(model(ids[row : row + 1, :n])[0], model(ids, keep)[row], rtol=1e-5, atol=1e-6)
        if pooling != "question":
            want = {"mean": x[row, :n].mean(0), "cls": x[row, 0], "last": x[row, n - 1]}[pooling]
            torch.testing.assert_close(model(ids, keep)[row], want, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_scores_are_capped_and_the_backends_agree():
    model, (ids, keep) = plait.create_model(NAME, cap=0.05, num_classes=0).eval(), example()
    wide = plait.create_model(NAME, cap=1e6, num_classes=0).eval()
    wide.load_state_dict(model.state_dict())
    for m in (model, wide):  # scores far from nothing
        for block in m.stack.blocks:
            block.mix.f.qkv.weight.mul_(8)
    assert (model(ids, keep) - wide(ids, keep)).abs().max() > 1e-2
    torch.testing.assert_close(with_backend(model, "eager")(ids, keep), model(ids, keep))


@torch.no_grad()
def test_capped_attention_is_softmax_of_capped_scores_whoever_is_hidden():
    g = torch.Generator().manual_seed(0)
    q, k, v = (8 * torch.randn(2, 2, 5, 4, generator=g) for _ in range(3))
    keep, past = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]).bool(), torch.ones(5, 5, dtype=torch.bool).tril()
    for causal in (False, True):
        scores = (3.0 * (q @ k.mT / 2 / 3.0).tanh()).masked_fill(~keep[:, None, None], -torch.inf)
        scores = scores.masked_fill(~past, -torch.inf) if causal else scores
        want = scores.softmax(-1).nan_to_num(0.0) @ v
        torch.testing.assert_close(Capped(3.0).mix(q, k, v, keep=keep, causal=causal), want)


def test_dropout_comes_back_and_an_unknown_pooling_is_refused():
    model, (ids, _) = plait.create_model(NAME, dropout=0.5), example()
    assert not torch.equal(model(ids), model(ids)) and torch.equal(model.eval()(ids), model(ids))
    with pytest.raises(ValueError, match="pooling: got 'max', expected one of mean, cls, last, question"):
        plait.create_model(NAME, pooling="max")
