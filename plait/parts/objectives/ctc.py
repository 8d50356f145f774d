"""Connectionist temporal classification (Graves et al., ICML 2006): a loss, and two ways back from frames to labels.

Label 0 is the blank."""

from __future__ import annotations

import heapq
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def needed_frames(target: Tensor) -> Tensor:
    """(B,) how many frames a target (B, U), -100 where it has ended, takes at least: one a label, and a blank between
    equal ones."""
    real = target >= 0
    return real.sum(1) + (real[:, 1:] & (target[:, 1:] == target[:, :-1])).sum(1)


def ctc_rows(logits: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """logits (B, T, V), lengths (B,) of frames, target (B, U) -> the loss per label of each row (B,) in nats, and which
    rows it is of (B,).

    A row with fewer frames than its target needs has no finite loss: it is not among the latter, and its entry is 0.
    The targets are ended by -100; one that holds a label of V or more has no loss either.
    """
    sizes = (target >= 0).sum(1)
    fits = (needed_frames(target) <= lengths) & (target < logits.shape[2]).all(1) & (sizes > 0)
    labels = target.clamp(0, logits.shape[2] - 1)
    logp = logits.float().log_softmax(2).transpose(0, 1)  # (T, B, V)
    loss = F.ctc_loss(logp, labels, lengths, sizes, blank=0, reduction="none", zero_infinity=True)
    return (loss / sizes.clamp(min=1)).masked_fill(~fits, 0.0), fits


def greedy(logits: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest label of each frame, repeats and blanks left out: logits (B, T, V), lengths (B,) -> labels (B, T),
    0 after the last, and the log-probability of that path (B,)."""
    best, labels = logits.float().log_softmax(2).max(2)  # (B, T)
    real = torch.arange(logits.shape[1], device=logits.device) < lengths[:, None]
    new = real & (labels != 0) & (labels != F.pad(labels, (1, 0))[:, :-1])
    order = (~new).to(torch.uint8).argsort(dim=1, stable=True)  # labels first, in their order
    out = labels.masked_fill(~new, 0).gather(1, order)
    return out, best.masked_fill(~real, 0.0).sum(1)


def prefix_beam(logp: np.ndarray, width: int) -> tuple[list[int], float]:
    """The likeliest labels found with `width` prefixes kept a frame, and their log-probability over all alignments
    within the beam.

    logp: (T, V) log-probabilities of one row. All paths that spell the same prefix are added up, so that with a wide
    enough beam this is the likeliest spelling, which the likeliest path need not be.
    """
    # prefix -> log-probability of its paths that end in a blank, and of those that do not
    beam = {(): (0.0, -math.inf)}
    for row in logp:
        likely = [c for c in np.argsort(-row, kind="stable")[: width + 1].tolist() if c]
        following: dict[tuple, list[float]] = {}

        def add(prefix: tuple, side: int, value: float, following=following) -> None:
            both = following.setdefault(prefix, [-math.inf, -math.inf])
            both[side] = _plus(both[side], value)

        for prefix, (blank, label) in beam.items():
            total = _plus(blank, label)
            add(prefix, 0, total + float(row[0]))
            if prefix:
                add(prefix, 1, label + float(row[prefix[-1]]))
            for c in likely:
                before = blank if prefix and c == prefix[-1] else total  # an equal label needs a blank between
                add((*prefix, c), 1, before + float(row[c]))
        best = heapq.nlargest(width, following.items(), key=lambda item: _plus(*item[1]))
        beam = {prefix: (both[0], both[1]) for prefix, both in best}
    prefix, both = max(beam.items(), key=lambda item: _plus(*item[1]))
    return list(prefix), _plus(*both)


def _plus(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
