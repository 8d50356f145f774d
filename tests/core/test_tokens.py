"""Tokens: what joining and prepending keep or refuse, and what goes on from an inner layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plait.core.block import Block, FeedForward, Pre, Stack
from plait.core.tokens import Tokens, apart, by_kind, join, prepend, together


def tokens(n=3, **fields):
    return Tokens(torch.randn(2, n, 4), **fields)


def test_joined_streams_keep_what_one_sequence_can_hold():
    a = tokens(2, keep=torch.tensor([[True, False]] * 2), prefix=1, losses={"a": torch.ones(())})
    b = tokens(3, weight=torch.full((2, 3), 2.0), losses={"a": torch.ones(()), "b": torch.ones(())})
    t = join(a, b, kinds=("text", "image"))
    assert t.keep.tolist() == [[True, False, True, True, True]] * 2
    assert t.weight.tolist() == [[1, 1, 2, 2, 2]] * 2
    assert (t.prefix, t.kinds) == (1, (("text", 2), ("image", 3)))
    assert t.losses["a"] == 2 and t.losses["b"] == 1
    parts = by_kind(t)
    assert torch.equal(parts["image"].x, b.x) and torch.equal(parts["text"].keep, a.keep)
    assert prepend(torch.zeros(1, 2, 4), t).kinds[0] == ("special", 2)


def test_a_kind_that_comes_again_is_taken_out_whole_and_put_back():
    kinds = (("text", 1), ("image", 2), ("text", 2))
    t = tokens(5, keep=torch.tensor([[True, False, True, False, True]] * 2), kinds=kinds)
    parts = by_kind(t)
    assert torch.equal(parts["text"].x, t.x[:, [0, 3, 4]]) and torch.equal(parts["text"].keep, t.keep[:, [0, 3, 4]])
    assert torch.equal(together({name: part.x for name, part in parts.items()}, kinds), t.x)
    assert torch.equal(together(apart(t.x.mT, kinds, 2), kinds, 2), t.x.mT)


@pytest.mark.parametrize("field", [{"pos": torch.zeros(3, 2)}, {"lengths": (3,)}, {"memory": {}}, {"prefix": 1}])
def test_what_one_sequence_cannot_hold_is_refused(field):
    with pytest.raises(ValueError, match="expected"):
        join(tokens(), tokens(**field))


def test_a_layer_reads_what_its_context_gives_and_says_what_is_missing():
    t = tokens().reading(words=1, image=2)
    assert t.read("words") == 1 and tokens().context is None
    with pytest.raises(ValueError, match="reads 'sound', and the context gives words, image"):
        t.read("sound")


class Greedy(nn.Module):
    reads = ("image",)

    def forward(self, t: Tokens) -> Tokens:
        return t.add_loss("greed", t.read("image").sum())


class Giver(nn.Module):
    gives = ("image",)

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, t: Tokens) -> Tokens:
        return t.carry(y := self.f(t.reading(image=torch.ones(2))), y.x)


def layer(mix):
    return Block(Pre(nn.LayerNorm(4), mix), Pre(nn.LayerNorm(4), FeedForward(4, 8)))


def test_a_stack_is_given_what_its_layers_read_no_more_and_no_less():
    with pytest.raises(ValueError, match="read image, which nobody gives"):
        Stack(layer(Greedy()))
    with pytest.raises(ValueError, match="sound is given, and none"):
        Stack(layer(Greedy()), gives=("image", "sound"))
    Stack(layer(Giver(Greedy())))
    stack = Stack(layer(Greedy()), layer(Greedy()), gives=("image",))
    out = stack(tokens().reading(image=torch.ones(2)).add_loss("greed", torch.tensor(1.0)))
    assert out.losses["greed"] == 5
