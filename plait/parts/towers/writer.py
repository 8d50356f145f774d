"""What models of words alone have in common: they read a text, and say what comes after each of its words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.memory import AnyMemory, Memory
from plait.core.tokens import Tokens, check_mask
from plait.errors import PlaitError
from plait.parts.presence import fill_absent


class Writer(nn.Module):
    """A generator of words alone: ids (B, N) -> logits (B, N, V) of the word after each. A system has `embed(ids)`,
    `read(t)` and `say(t)`; `begin`, `end` and `length`. beyond: parts that only `say` has need of.

    Whoever has vectors that stand among the words, such as those of a picture, hands them to `read` himself.
    """

    takes: tuple[str, ...] = ("text",)
    fits: tuple[str, ...] = ("vocab",)
    beyond: tuple[str, ...] = ()
    begin: int
    end: int
    length: int

    def embed(self, ids: Tensor) -> Tensor:
        """Words (B, N) -> their vectors (B, N, D), as `read` takes them."""
        raise NotImplementedError

    def read(self, t: Tokens) -> Tokens:
        """Vectors (B, N, D) of words, or of whatever stands in their places, after those of the memory, if there is one
        -> features (B, N, D), of which `say` makes words. pos (B, N) or (N,): their places, if not one after another.
        """
        raise NotImplementedError

    def say(self, t: Tokens) -> Tensor:
        """Features -> logits (B, N, V)."""
        raise NotImplementedError

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        """ids (B, N) -> features (B, N, D)."""
        check_mask(keep, *ids.shape)
        return self.read(Tokens(self.embed(ids), keep=keep))

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.say(self.tokens(ids, keep))

    def prefill(self, batch: dict) -> AnyMemory:
        """Read the text so far; where the batch has none, nothing."""
        if "text" not in batch:
            return Memory()
        s = fill_absent(batch, {"text": ((1,), torch.int64)})
        all_real = "text" not in s.keep and "text" not in batch.get("present", {})
        keep = None if all_real else s.mask("text")
        return self.read(Tokens(self.embed(s.values["text"]), keep=keep, memory=Memory())).memory

    def step(self, tokens: Tensor, cache: AnyMemory, keep: Tensor | None = None) -> tuple[Tensor, AnyMemory]:
        """The next words (B, N), one or many -> (B, N, V) logits of the word after each, and the memory with them."""
        if tokens.shape[1] > self.length:
            raise PlaitError(f"a text of {tokens.shape[1]} words, but there are places for {self.length}: cut it")
        check_mask(keep, *tokens.shape)
        t = self.read(Tokens(self.embed(tokens), keep=keep, memory=cache))
        return self.say(t), t.memory


def following(t: Tokens) -> Tensor:
    """The places (B, N) or (N,) of tokens that follow those of their memory, if they have one: real ones are counted
    alone."""
    past = None if t.memory is None else t.memory.keep
    if past is None and t.keep is None:
        return torch.arange(t.x.shape[1], device=t.x.device)
    now = t.x.new_ones(t.x.shape[:2], dtype=torch.int64) if t.keep is None else t.keep
    before = 0 if past is None else past.sum(1, keepdim=True)
    return (before + now.cumsum(1) - 1).clamp(min=0)


def back(t: Tokens, places: Tensor | None = None) -> Tensor:
    """(B, N, M + N) or (1, N, N): how many places each token of the memory, and of the text, lies behind each of the
    text's; negative ahead. places (B, N) or (N,): as `following` has them, unless given."""
    places = following(t) if places is None else places
    past = None if t.memory is None else t.memory.keep
    if past is None:
        return places[..., None] - places[..., None, :] if places.dim() == 2 else (places[:, None] - places)[None]
    places = places.expand(t.x.shape[:2])
    return places[..., None] - torch.cat([(past.cumsum(1) - 1).clamp(min=0), places], 1)[:, None]
