"""Align before fuse (ALBEF, arXiv:2107.07651): three losses of pairs of pictures and texts, their targets softened by a
momentum teacher. A system hands them on as its `objective`, `make_state` and `after_step`.

The model is one whose text reads first alone, then the picture: `AlignsAndFuses`.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens, real
from plait.parts.objectives.matching import hard_negatives, hide_words
from plait.parts.objectives.momentum import Momentum, alike, mean_where, queue_contrast

MOMENTUM, ALPHA, RAMP = 0.995, 0.4, 1000  # of the teacher; its share of the targets, and the steps until it has it


class AlignsAndFuses(Protocol):
    """An `nn.Module` whose text (B, N) reads first alone, then the picture.

    queue: how many vectors to remember, or 0. mask, vocab: of the words. guess: the word head, None: no words are
    hidden.
    """

    takes: tuple[str, ...]
    queue: int
    embed_width: int
    vocab: int
    mask: int
    guess: nn.Module | None
    temperature: nn.Parameter

    def open(self, batch: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """image (B, 3, H, W), present (B,), ids (B, N), keep (B, N)."""
        ...

    def see(self, image: Tensor, present: Tensor) -> Tokens: ...

    def read(self, ids: Tensor, keep: Tensor) -> Tokens: ...

    def cross(self, text: Tokens, image: Tokens) -> Tokens:
        """The text asks, the picture answers."""
        ...

    def vectors(self, image: Tokens, text: Tokens) -> dict[str, Tensor]:
        """{slot: (B, E) unit vectors}."""
        ...

    def words(self, x: Tensor) -> Tensor:
        """(..., D) fused tokens -> (..., V) logits."""
        ...

    def match(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, 2) logits: no pair, a pair."""
        ...


def make_state(model: nn.Module, seed: int) -> Momentum:
    """The teacher and the queues; nothing in them is random, so that the seed has no say."""
    told = cast(AlignsAndFuses, model)
    return Momentum(model, told.takes, size=told.queue, width=told.embed_width, momentum=MOMENTUM, ramp=RAMP)


def objective(model: AlignsAndFuses, batch: dict, state: Momentum, generator: torch.Generator) -> dict[str, Tensor]:
    """{"align", "match", "words"}: three losses () of a batch of pairs, the last where the model has a word head. What
    the teacher saw is left in `state` until `after_step`.

    batch may hold "same" (B,) int64, the group of each row; without it rows are told apart by "row", or else all
    differ.
    """
    teacher = cast(AlignsAndFuses, state.teacher)
    pixels, present, ids, keep = model.open(batch)
    image, text = model.see(pixels, present), model.read(ids, keep)
    with torch.no_grad():
        image_then = teacher.see(pixels, present)
        vectors_then = teacher.vectors(image_then, teacher.read(ids, keep))
    alpha, vectors = ALPHA * state.warmth(), model.vectors(image, text)
    real, group = present & keep.any(1), batch.get("same", batch.get("row"))
    align, scores = queue_contrast(vectors, vectors_then, state.queues, real, group, model.temperature, alpha)
    state.observe(vectors_then, real, group)
    others = real[None, :] & ~alike(group, ids.shape[0], ids.device)
    pictures, found_pictures = hard_negatives(scores["text"], others, generator)
    texts, found_texts = hard_negatives(scores["image"], others, generator)
    counts = torch.cat([real, real & found_pictures, real & found_texts])
    losses = {"align": align, "match": match_loss(model, image, text, pictures, texts, counts)}
    if model.guess is not None:
        candidates = keep & (torch.arange(ids.shape[1], device=ids.device) > 0)  # the leading token is never hidden
        hidden, labels = hide_words(ids, candidates, generator, mask=model.mask, vocab=model.vocab)
        losses["words"] = words_loss(model, teacher, hidden, keep, labels, image, image_then, alpha)
    return losses


def after_step(model: nn.Module, state: Momentum) -> None:
    """The queues take in what the teacher saw, the teacher follows, and the temperature stays in the official
    bounds."""
    state.advance(model)
    with torch.no_grad():
        cast(AlignsAndFuses, model).temperature.clamp_(0.001, 0.5)


def match_loss(
    model: AlignsAndFuses, image: Tokens, text: Tokens, pictures: Tensor, texts: Tensor, counts: Tensor
) -> Tensor:
    """Each pair, each text with a wrong picture and each picture with a wrong text, told apart; counts (3 B,): which of
    these there are."""
    asking = together(text, text, rows_of(text, texts))
    answering = together(image, rows_of(image, pictures), image)
    logits = model.match(model.cross(asking, answering).x[:, 0]).float()
    labels = torch.zeros_like(counts, dtype=torch.int64)
    labels[: image.x.shape[0]] = 1
    return mean_where(F.cross_entropy(logits, labels, reduction="none"), counts)


def words_loss(
    model: AlignsAndFuses,
    teacher: AlignsAndFuses,
    hidden: Tensor,
    keep: Tensor,
    labels: Tensor,
    image: Tokens,
    image_then: Tokens,
    alpha: Tensor | float,
) -> Tensor:
    """Hidden words guessed from the rest of the text and the picture; targets are the words and the teacher's
    guesses."""
    chosen = labels >= 0
    logits = model.words(model.cross(model.read(hidden, keep), image).x[chosen]).float()  # (M, V)
    with torch.no_grad():
        believed = teacher.words(teacher.cross(teacher.read(hidden, keep), image_then).x[chosen]).float().softmax(-1)
    log = logits.log_softmax(-1)
    told = -log.gather(1, labels[chosen][:, None])[:, 0]
    return ((1 - alpha) * told - alpha * (believed * log).sum(-1)).sum() / chosen.sum().clamp(min=1)


def rows_of(t: Tokens, index: Tensor) -> Tokens:
    return t.replace(x=t.x[index], keep=real(t)[index])


def together(*batches: Tokens) -> Tokens:
    """The rows of all batches, one batch after another."""
    return batches[0].replace(x=torch.cat([t.x for t in batches]), keep=torch.cat([real(t) for t in batches]))
