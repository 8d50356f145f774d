"""Does this text belong to this picture? Hard negatives from the batch (ALBEF, arXiv:2107.07651), and words hidden for
a model to guess."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def hard_negatives(scores: Tensor, allowed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One candidate per row, drawn with probability softmax(scores) among the allowed ones: the more alike, the more
    often.

    scores (B, M), allowed (B, M) bool -> index (B,) int64 and found (B,) bool, False (with index 0) where a row allows
    nothing.
    The draw is the maximum of scores plus Gumbel noise, so no candidate is lost to underflow and none that is not
    allowed can win.
    """
    uniform = torch.rand(scores.shape, generator=generator, device=generator.device).to(scores.device)
    gumbel = -(-uniform.clamp(1e-20, 1 - 1e-7).log()).log()
    index = (scores.float() + gumbel).masked_fill(~allowed, float("-inf")).argmax(1)
    found = allowed.any(1)
    return index.masked_fill(~found, 0), found


@torch.no_grad()
def hide_words(
    ids: Tensor, candidates: Tensor, generator: torch.Generator, *, mask: int, vocab: int, rate: float = 0.15
) -> tuple[Tensor, Tensor]:
    """BERT's masking: of the candidates, `rate` are to be guessed; 80% of those become `mask`, 10% a random id, 10%
    stay.

    ids (B, N) int64, candidates (B, N) bool -> the changed ids (B, N) and labels (B, N), -100 where nothing is to be
    guessed.
    """

    def draw() -> Tensor:
        return torch.rand(ids.shape, generator=generator, device=generator.device).to(ids.device)

    chosen = (draw() < rate) & candidates
    fate = draw()
    random = torch.randint(vocab, ids.shape, generator=generator, device=generator.device).to(ids.device)
    hidden = torch.where(chosen & (fate < 0.8), mask, ids)
    hidden = torch.where(chosen & (fate >= 0.9), random, hidden)
    return hidden, ids.masked_fill(~chosen, -100)
