"""Memory: tokens read one by one, after what is remembered, get what they get all at once; both forms of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from plait.core.attend import Attend, attend, recorded, repeated
from plait.core.block import Attention, CrossAttention, Stack
from plait.core.init import initialise
from plait.core.memory import Memory
from plait.core.tokens import Tokens
from plait.parts.towers.encoder import post_norm_blocks, pre_norm_blocks

FORMS = {
    "plain": {},
    "grouped": dict(kv_heads=2),
    "normed, of another width": dict(kv_heads=1, head_width=6, qk_norm=nn.RMSNorm),
}


def decoder(**how) -> Stack:
    with torch.device("meta"):
        stack = Stack(*pre_norm_blocks(16, 2, 4, 32, mix=partial(Attention, causal=True, **how)))
    return initialise(stack).eval()


@torch.no_grad()
@pytest.mark.parametrize("how", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("form", [None, Memory.laid_out, Memory.fixed], ids=["growing", "laid out", "fixed"])
def test_one_by_one_is_all_at_once(how, form):
    stack, x = decoder(**how), torch.randn(3, 9, 16)
    keep = torch.ones(3, 9, dtype=torch.bool)
    keep[1, :2] = False  # a row that begins later
    want = stack(Tokens(x, keep=keep)).x
    t = stack(Tokens(x[:, :3], keep=keep[:, :3], memory=Memory()))
    got, memory = [t.x], t.memory if form is None else form(t.memory, 12)
    for start, stop in ((3, 4), (4, 7), (7, 9)):
        t = stack(Tokens(x[:, start:stop], keep=keep[:, start:stop], memory=memory))
        got.append(t.x)
        memory = t.memory
    where = keep[..., None]
    torch.testing.assert_close(
        torch.cat(got, 1).masked_fill(~where, 0), want.masked_fill(~where, 0), rtol=1e-4, atol=1e-5
    )
    keys = memory.pages[0]["self"][0]
    assert keys.shape[1:3] == (how.get("kv_heads", 4), 12 if form else 9)


def test_a_memory_that_does_not_fit_is_refused():
    stack, x = decoder(), torch.randn(1, 5, 16)
    memory = stack(Tokens(x, memory=Memory())).memory
    with pytest.raises(ValueError, match="got a memory of 5 tokens, expected 1 to 4"):
        memory.laid_out(4)
    with pytest.raises(ValueError, match="weighed or packed tokens with a memory"):
        stack_of_all = initialise(Stack(*pre_norm_blocks(16, 1, 4, 32)))
        stack_of_all(Tokens(x, weight=torch.ones(1, 5), memory=Memory()))


@torch.no_grad()
def test_another_stream_is_projected_once():
    cross = partial(CrossAttention, stream="image")
    with torch.device("meta"):
        stack = Stack(
            *post_norm_blocks(16, 2, 4, 32, mix=partial(Attention, causal=True), cross=cross), gives=("image",)
        )
    stack, x, image = initialise(stack).eval(), torch.randn(2, 4, 16), Tokens(torch.randn(2, 7, 16))
    want = stack(Tokens(x).reading(image=image)).x
    calls = []
    stack.blocks[0].cross.f.kv.register_forward_hook(lambda *_: calls.append(1))
    memory, got = Memory(), []
    for i in range(4):
        t = stack(Tokens(x[:, i : i + 1], memory=memory).reading(image=image))
        got.append(t.x)
        memory = t.memory
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["none", "keys", "pairs"])
@pytest.mark.parametrize("bias", [None, (1, 4, 5, 7), (2, 1, 1, 7), (2, 4, 1, 7)])
def test_grouped_queries_are_repeated_keys(causal, masked, bias):
    q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 7, 6), torch.randn(2, 2, 7, 6)
    keep = {"none": None, "keys": torch.rand(2, 7) > 0.3, "pairs": torch.rand(2, 5, 7) > 0.3}[masked]
    how = dict(keep=keep, causal=causal, bias=None if bias is None else torch.randn(bias))
    want = attend(q, repeated(k, 4), repeated(v, 4), **how)
    torch.testing.assert_close(attend(q, k, v, **how), want, rtol=1e-5, atol=1e-5)
    watched, maps = recorded(Attend(causal=causal))
    del how["causal"]
    torch.testing.assert_close(watched.mix(q, k, v, **how), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps[0] @ repeated(v, 4), want, rtol=1e-5, atol=1e-5)


def test_heads_that_do_not_group_are_refused():
    with pytest.raises(ValueError, match="expected a multiple"):
        attend(torch.randn(1, 3, 2, 4), torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4))


@torch.no_grad()
def test_who_may_hear_whom_is_the_contexts_to_say():
    stack, x = decoder(), torch.randn(2, 5, 16)
    free = initialise(Stack(*pre_norm_blocks(16, 2, 4, 32))).eval()
    free.load_state_dict(stack.state_dict())
    everybody = torch.ones(5, 5, dtype=torch.bool)
    torch.testing.assert_close(stack(Tokens(x).reading(allow=everybody)).x, free(Tokens(x)).x)
    torch.testing.assert_close(free(Tokens(x).reading(allow=everybody.tril())).x, stack(Tokens(x)).x)


def test_a_memory_without_room_says_so_and_one_that_is_written_in_place_copies_nothing():
    stack, x = decoder(), torch.randn(1, 5, 16)
    with torch.no_grad():
        laid = stack(Tokens(x[:, :3], memory=Memory())).memory.laid_out(4)
        after = stack(Tokens(x[:, 3:4], memory=laid)).memory
        assert after.pages[0]["self"][0] is laid.pages[0]["self"][0] and after.start == 4 == laid.start + 1
        with pytest.raises(ValueError, match="got 5 tokens for a memory with room for 4"):
            stack(Tokens(x[:, 4:], memory=after))
    before = laid.pages[0]["self"][0].clone()
    stack(Tokens(x[:, 3:4].requires_grad_(), memory=laid)).x.sum().backward()  # nothing that a gradient needs is lost
    assert torch.equal(laid.pages[0]["self"][0], before)


@torch.no_grad()
@pytest.mark.parametrize("how", FORMS.values(), ids=FORMS)
def test_who_may_see_whom_can_be_told_of_what_is_remembered(how):
    """A window of three: of all at once, and one by one after what was read."""
    stack, x = decoder(**how), torch.randn(2, 7, 16)
    places = torch.arange(7)
    near = (places <= places[:, None]) & (places > places[:, None] - 3)
    want = stack(Tokens(x).reading(allow=near)).x
    t = stack(Tokens(x[:, :4], memory=Memory()).reading(allow=near[:4, :4]))
    got = [t.x]
    for i in range(4, 7):
        t = stack(Tokens(x[:, i : i + 1], memory=t.memory).reading(allow=near[i : i + 1, : i + 1]))
        got.append(t.x)
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-4, atol=1e-5)
