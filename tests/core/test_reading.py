"""The last layer for one token: as the whole stack says it, for less, and whole where somebody looks."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import plait
from plait.core.attend import recorded
from plait.core.block import Attention, Stack
from plait.core.reading import picked, read_at
from plait.core.recompute import recompute
from plait.core.tokens import Tokens
from plait.parts.towers.encoder import post_norm_blocks, pre_norm_blocks

KEEP = torch.arange(9) < torch.tensor([9, 4, 6])[:, None]
LAST = torch.tensor([8, 3, 5])


def stack(mix=Attention, depth: int = 2, **how) -> Stack:
    torch.manual_seed(0)
    made = Stack(*pre_norm_blocks(16, depth, 4, 32, mix=mix, **how))
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


def tokens(keep: torch.Tensor | None = None) -> Tokens:
    return Tokens(torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(1)), keep=keep)


MIXES = {
    "both ways": Attention,
    "causal": partial(Attention, causal=True),
    "grouped": partial(Attention, kv_heads=2, qkv_bias=False),
    "normed": partial(Attention, qk_norm=nn.LayerNorm),
}


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all", "some"])
@pytest.mark.parametrize("at", [0, LAST], ids=["first", "last"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("mix", MIXES)
def test_it_says_what_the_whole_stack_says(mix, depth, at, keep):
    """Value and gradients; of the causal one, whatever stands behind."""
    made, t = stack(MIXES[mix], depth, scale=0.5), tokens(keep)
    found, expected = [], []
    for out, how in ((found, read_at(made, t, at).x), (expected, picked(made(t).x, at))):
        out.append(how)
        out += torch.autograd.grad(how.square().sum(), list(made.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_causal_layer_without_a_mask_sees_nothing_behind():
    made, t = stack(MIXES["causal"]), tokens()
    other = t.replace(x=torch.where(KEEP[..., None], t.x, 7.0))
    torch.testing.assert_close(read_at(made, other, LAST).x, read_at(made, t, LAST).x)
    assert not torch.allclose(read_at(made, other, 8).x[1], read_at(made, t, 8).x[1])


def test_most_of_a_layer_is_left_out():
    made, t = stack(depth=1), tokens()
    counts = []
    for call in (lambda: read_at(made, t, 0), lambda: made(t)):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.45 * counts[1]


def test_whoever_looks_sees_all_tokens():
    made, t = stack(), tokens()
    seen: list[int] = []
    hook = made.blocks[-1].register_forward_hook(lambda m, given, out: seen.append(out.x.shape[1]))
    read_at(made, t, 0)
    hook.remove()
    assert seen == [9]
    twin, maps = recorded(made)
    read_at(twin, t, 0)
    assert [m.shape for m in maps] == [(3, 4, 9, 9)] * 2
    undo = recompute(made)
    torch.testing.assert_close(read_at(made, t, 0).x, made(t).x[:, :1])
    undo()


def test_other_layers_are_computed_whole():
    torch.manual_seed(0)
    made = Stack(*post_norm_blocks(16, 2, 4, 32))
    weighed = tokens().replace(weight=torch.full((3, 9), 2.0))
    for t in (tokens(KEEP), weighed):
        torch.testing.assert_close(read_at(made, t, LAST).x, picked(made(t).x, LAST))
        torch.testing.assert_close(read_at(stack(), t, 0).x, stack()(t).x[:, :1])


@torch.no_grad()
def test_texts_with_holes_or_without_a_word_are_read_by_their_mask():
    """What is cut off and which mask is left out depends on the batch, and must not show."""
    tower = plait.create_model("clip_toy").eval().towers["text"]
    ids = torch.randint(1, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    keep = torch.arange(12) < torch.tensor([7, 5, 0])[:, None]
    holed = keep.clone()
    holed[0, 2] = False
    for mask in (keep, holed, keep.roll(3, 1)):
        places = (mask * torch.arange(12)).amax(1)
        expected = tower.project(tower.norm(picked(tower.tokens(ids, mask).x, places)[:, 0]))
        torch.testing.assert_close(tower(ids, mask), expected)
        torch.testing.assert_close(tower(ids[:2], mask[:2]), expected[:2])
