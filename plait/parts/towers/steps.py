"""What policies share that read trajectories: some tokens for each step, and a causal tower over them."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from plait.core.block import Attention, Block, FeedForward, Pre, Stack
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.presence import Blank, fill_absent


class Steps(nn.Module):
    """Trajectories so far, batch[name] (B, T, C) for each of `channels` {name: C} -> Tokens (B, R T, D): R tokens a
    step, in this order, of which those that are not there are not real.

    batch["steps"] (B, T) int64: the steps' numbers in their episodes, if not 0, 1, 2, ... length: the most steps of an
    episode; tries: of how many. places: rows of the table of which the first is added everywhere.
    """

    def __init__(
        self, channels: dict[str, int], width: int, depth: int, heads: int, length: int, places: int, dropout: float,
        *, tries: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.width, self.length, self.tries = width, length, tries
        self.blanks: dict[str, Blank] = {name: ((1, c), torch.float32) for name, c in channels.items()}
        self.embed = nn.ModuleDict({name: nn.Linear(c, width) for name, c in channels.items()})
        self.steps = nn.Embedding(length, width)
        self.norm_in, self.drop = nn.LayerNorm(width), nn.Dropout(dropout)
        self.places = nn.Parameter(torch.empty(places, width))
        mix, feed = partial(Attention, causal=True, dropout=dropout), partial(FeedForward, act=nn.ReLU)
        steps = (
            [Pre(nn.LayerNorm(width), f, nn.Dropout(dropout)) for f in (mix(width, heads), feed(width, 4 * width))]
            for _ in range(depth)
        )
        self.stack = Stack(*(Block(*pair) for pair in steps))
        self.norm = nn.LayerNorm(width)

    def reset(self) -> None:
        nn.init.trunc_normal_(self.places, std=0.02)

    def tokens(self, batch: dict) -> Tokens:
        """(B, R T, D): of the first step each of its R, then those of the second, ..."""
        s = fill_absent(batch, self.blanks)
        count, most = max(v.shape[1] for v in s.values.values()), self.length * (self.tries if "steps" in batch else 1)
        if count > most:
            raise PlaitError(f"got {count} steps, expected at most {most}: give the last ones, with their steps")
        here = batch.get("steps", torch.arange(count, device=next(iter(s.values.values())).device))
        when = self.steps(here)
        xs, keeps = [], []
        for name in self.blanks:
            x, keep = s.values[name], s.mask(name)
            x, lack = x.masked_fill(~keep[..., None], 0.0), count - x.shape[1]
            xs.append(self.embed[name](F.pad(x, (0, 0, 0, lack))) + when)
            keeps.append(F.pad(keep, (0, lack)))
        x, keep = torch.stack(xs, 2).flatten(1, 2), torch.stack(keeps, 2).flatten(1, 2)
        t = self.stack(Tokens(self.drop(self.norm_in(x) + self.places[0]), keep=keep))
        return t.replace(x=self.norm(t.x))


def channels_of(slots: dict[str, dict], reads: tuple[str, ...]) -> dict[str, int]:
    """{name: channels} of the slots that a policy reads, in that order. Raises PlaitError for others."""
    if set(slots) != set(reads):
        raise PlaitError(f"got slots {', '.join(slots)}, expected {', '.join(reads)}: a policy reads these")
    return {name: slots[name]["channels"] for name in reads}
