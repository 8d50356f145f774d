"""What embedders of words alone have in common: a text is read, and one unit vector stands for it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens, mean, real
from plait.errors import PlaitError
from plait.parts.presence import Blank, fill_absent


def cls(t: Tokens) -> Tensor:
    """(B, D): the first token, which stands for the text."""
    return t.x[:, 0]


def last(t: Tokens) -> Tensor:
    """(B, D): the last real token, which has read all others."""
    rows, places = (torch.arange(n, device=t.x.device) for n in t.x.shape[:2])
    return t.x[rows, (real(t) * places).amax(1)]


POOLING = {"mean": mean, "cls": cls, "last": last}


def bare(tower: nn.Module) -> nn.Module:
    """The tower without what only its own answers need. Raises PlaitError for one that does not read words alone."""
    beyond = getattr(tower, "beyond", None)
    if not isinstance(beyond, tuple) or getattr(tower, "takes", ()) != ("text",):
        raise PlaitError(f"tower: got {type(tower).__name__}, expected an encoder or a writer of words alone")
    for name in beyond:
        setattr(tower, name, nn.Identity())
    return tower


def reach(tower: nn.Module) -> int | None:
    """The most words that it has places for; None: any number."""
    places = getattr(getattr(tower, "text_embedding", None), "positions", None)
    return getattr(places, "length", getattr(tower, "length", None))


def joined(
    first: Tensor, keep: Tensor, second: Tensor, keeps: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Two texts (B, N) and (B, M), ids with their masks, as one that begins once: ids, keep and which words are the
    second's, each (B, L) with L at most `most`, the padding behind. Without a first text it is the second as it is."""
    keeps = torch.cat([keeps[:, :1] & ~keep.any(1, keepdim=True), keeps[:, 1:]], 1)
    ids, there = torch.cat([first, second], 1), torch.cat([keep, keeps], 1)
    of = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) >= first.shape[1]
    order = (~there).int().argsort(dim=1, stable=True)[:, :most]
    ids, there, of = (x.gather(1, order) for x in (ids, there, of))
    return ids.masked_fill(~there, 0), there, of & there


class Sentences(nn.Module):
    """Token ids (B, N) -> unit vectors (B, E), by way of `tokens` and `pool`, which a system adds with `embed_width`.

    slots: names of the inputs that it reads, each with its kind, if they are not one text. scale: the factor of a
    cosine, in training.
    """

    fits: tuple[str, ...] = ("slots", "vocab")
    embed_width: int
    logit_scale: Tensor

    def __init__(self, slots: dict | None, scale: float):
        super().__init__()
        self.takes, self.scale = tuple(slots or ("text",)), scale
        self.blanks: dict[str, Blank] = dict.fromkeys(self.takes, ((1,), torch.int64))
        self.register_buffer("logit_scale", torch.empty(1), persistent=False)

    def reset(self) -> None:
        self.logit_scale.fill_(math.log(self.scale))

    def tokens(self, ids: Tensor, keep: Tensor | None = None) -> Tokens:
        """ids (B, N) int64, keep (B, N) bool (None: all real) -> Tokens (B, N, D)."""
        raise NotImplementedError

    def pool(self, t: Tokens) -> Tensor:
        """(B, E): one vector a text, of any length."""
        raise NotImplementedError

    def forward(self, ids: Tensor, keep: Tensor | None = None) -> Tensor:
        return F.normalize(self.pool(self.tokens(ids, keep)), dim=-1)

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, E)} unit vectors; zeros in rows where the text is absent."""
        s = fill_absent(batch, self.blanks)
        return {slot: self(s.values[slot], s.mask(slot)) * s.present[slot][:, None] for slot in self.takes}
