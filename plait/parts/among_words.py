"""What is no word among words: vectors of pictures in the places that a text keeps for them."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.core.tokens import Tokens, real


def among_words(words: Tokens, marks: Tensor, pictures: Tensor, there: Tensor, around: Tensor | None = None) -> Tokens:
    """words (B, N, D), marks (B, N) bool, pictures (B, P, M, D), there (B, P) bool -> Tokens of all of them in order,
    with `keep`: each picture that is there in the place of a mark of its row, one after the other.

    Marks without a picture are left out. Pictures without a mark come first: what a text has marks for are its last
    ones. around (D,): the word that stands before, between and behind those which come first.
    """
    (b, p, m, d), keep = pictures.shape, real(words)
    marks = marks & keep
    missing = (there.sum(1, keepdim=True) - marks.sum(1, keepdim=True)).clamp(min=0)  # (B, 1) marks
    first = torch.arange(p, device=there.device) < missing  # (B, P)
    x, no = words.x.new_zeros(b, p, d), torch.zeros_like(first)
    if around is not None:  # word, mark, word, mark, word
        between, x = torch.stack([first, first], 2).flatten(1), torch.stack([x, x + around], 2).flatten(1, 2)
        x, before = torch.cat([x[:, -1:], x], 1), torch.cat([missing > 0, between], 1)
        put = torch.cat([no[:, :1], torch.stack([first, no], 2).flatten(1)], 1)
    else:
        before = put = first
    x, keep, marks = torch.cat([x, words.x], 1), torch.cat([before, keep], 1), torch.cat([put, marks], 1)

    number = marks.cumsum(1) - 1  # of each mark
    taken = marks & (number < there.sum(1, keepdim=True))
    long = torch.where(taken, m, 1)
    start = long.cumsum(1) - long  # (B, N): where each word goes, and the picture that takes its place
    last = x.shape[1] + p * m - 1  # where the marks go, from here backwards
    own = torch.where(taken, last - number, start)
    starts = start.new_zeros(b, p + 1).scatter(1, torch.where(taken, number, p), start)[:, :p]
    begin = torch.where(
        there,
        starts.gather(1, (there.cumsum(1) - 1).clamp(min=0)),
        long.sum(1, keepdim=True) + (~there).cumsum(1) * m - m,
    )  # (B, P): the absent ones behind all words
    places = torch.cat([(begin[..., None] + torch.arange(m, device=begin.device)).flatten(1), own], 1)
    x, keep = torch.cat([pictures.flatten(1, 2), x], 1), torch.cat([there.repeat_interleave(m, 1), keep & ~marks], 1)
    x = torch.zeros_like(x).scatter(1, places[..., None].expand(-1, -1, d), x)
    return Tokens(x, keep=torch.zeros_like(keep).scatter(1, places, keep))
