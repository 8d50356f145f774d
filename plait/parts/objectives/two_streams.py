"""LXMERT's pre-training (arXiv:1908.07490): words and regions are hidden and guessed, half of the texts are exchanged
and found out, and questions are answered, all of one pass. A system hands it on as its `objective`.

The model is one whose words and regions meet: `MeetsRegions`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens, quiet, real
from plait.parts.objectives.matching import hard_negatives, hide_words
from plait.parts.objectives.momentum import alike, mean_where

HIDDEN, EXCHANGED = 0.15, 0.5  # of the words and of the regions; of the texts
WEIGHT = 1 / 0.15  # of what is asked of regions, which is a mean over all of them, hidden or not


class MeetsRegions(Protocol):
    """An `nn.Module` that reads words and regions. mask, vocab: of the words. Heads are None where it has none:
    guess, match, regions (R, D) -> {name: (R, K)}, answer."""

    vocab: int
    mask: int
    guess: nn.Module | None
    match: nn.Module | None
    regions: nn.Module | None
    answer: nn.Module | None

    def open(self, batch: dict) -> tuple[Tensor, Tensor, Tokens]:
        """ids (B, N), keep (B, N), regions (B, R, C) with their boxes."""
        ...

    def meet(self, ids: Tensor, keep: Tensor, regions: Tokens, kinds: Tensor | None = None) -> tuple[Tokens, Tokens]:
        """Words (B, N, D) and regions (B, R, D)."""
        ...

    def pool(self, t: Tokens) -> Tensor:
        """Words -> (B, D)."""
        ...

    def words(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) logits."""
        ...


class Asked(NamedTuple):
    """What is asked of a batch. Ids are -100 where nothing is.

    words (B, N); match (B,): 1 a pair, 0 none; hidden (B, R) bool; features (B, R, C) of the regions. Of those who know
    more objects, attributes (B, R), sure (B, R): how much each of these counts; and answers (B,).
    """

    words: Tensor
    match: Tensor
    hidden: Tensor
    features: Tensor
    objects: Tensor | None = None
    attributes: Tensor | None = None
    sure: Tensor | None = None
    answers: Tensor | None = None


def objective(model: MeetsRegions, batch: dict, state: object, generator: torch.Generator) -> dict[str, Tensor]:
    """{"words", "match", "features", "objects", "attributes", "answers"}: the losses () that the model has heads for,
    and the batch targets.

    batch["target"] may hold "objects" and "attributes" (B, R), with "sure" (B, R), and "answers" (B,). Texts of rows of
    one group ("same" (B,) int64, or else "row") are never exchanged for each other. What finds regions is not taught:
    of a picture system that moves with its own targets all regions would soon be the same.
    """
    with torch.no_grad():
        ids, keep, seen = model.open(batch)
        seen = seen.replace(x=quiet(seen))
    there, group, known = real(seen), batch.get("same", batch.get("row")), batch.get("target", {})
    other, pair = exchanged(keep.any(1) & there.any(1), group, generator)
    ids, keep = ids[other], keep[other]
    candidates = keep & (torch.arange(ids.shape[1], device=ids.device) > 0)  # the leading token is never hidden
    hidden_ids, words = hide_words(ids, candidates, generator, mask=model.mask, vocab=model.vocab, rate=HIDDEN)
    gone = there & (draw(there.shape, generator).to(there.device) < HIDDEN)
    told = [known.get(name) for name in ("objects", "attributes", "sure", "answers")]
    asked = Asked(words, pair, gone, seen.x, *told)
    if asked.answers is not None:
        asked = asked._replace(answers=asked.answers.masked_fill(pair == 0, -100))
    met = model.meet(hidden_ids, keep, seen.replace(x=seen.x.masked_fill(gone[..., None], 0.0)))
    return losses(model, *met, asked)


def exchanged(pairs: Tensor, group: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whose text each row gets, (B,) int64: its own, or, for half of the pairs (B,) bool, another pair's; and whether
    it then is a pair, (B,): 1, 0, or -100 where there was none."""
    rows = pairs.shape[0]
    others = pairs[None, :] & ~alike(group, rows, pairs.device)
    index, found = hard_negatives(torch.zeros(rows, rows, device=pairs.device), others, generator)
    swap = pairs & found & (draw((rows,), generator).to(pairs.device) < EXCHANGED)
    own = torch.arange(rows, device=pairs.device)
    return torch.where(swap, index, own), (~swap).long().masked_fill(~pairs, -100)


def losses(model: MeetsRegions, words: Tokens, regions: Tokens, asked: Asked) -> dict[str, Tensor]:
    """Those that the model has heads for: of words, pairs and answers the mean over what is asked; of regions over all
    that are real, of which only the hidden ones are asked."""
    found: dict[str, Tensor] = {}
    fused = model.pool(words)
    if model.guess is not None and model.match is not None:
        chosen = asked.words >= 0
        found["words"] = entropy(model.words(words.x[chosen]), asked.words[chosen])
        found["match"] = entropy(model.match(fused), asked.match)
    if model.regions is not None:
        found |= region_losses(model.regions(regions.x), real(regions), asked)
    if model.answer is not None and asked.answers is not None:
        found["answers"] = entropy(model.answer(fused), asked.answers)
    return found


def region_losses(said: dict[str, Tensor], there: Tensor, asked: Asked) -> dict[str, Tensor]:
    """{"features", "objects", "attributes"}: what was hidden, said (B, R, K) of each region; there (B, R)."""
    hidden = asked.hidden.float()
    sure, found = hidden if asked.sure is None else hidden * asked.sure, {}
    if "features" in said:
        cost = F.smooth_l1_loss(said["features"].float(), asked.features.float(), reduction="none").mean(2)
        found["features"] = (cost, hidden)
    for name, ids in (("objects", asked.objects), ("attributes", asked.attributes)):
        if name in said and ids is not None:
            cost = F.cross_entropy(said[name].float().flatten(0, 1), ids.flatten(), reduction="none")
            found[name] = (cost.unflatten(0, ids.shape), sure)
    count = there.sum().clamp(min=1)
    return {name: WEIGHT * (cost * by).masked_fill(~there, 0.0).sum() / count for name, (cost, by) in found.items()}


def entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """() of logits (M, K) and ids (M,), over those that are not -100; 0 where there are none."""
    return mean_where(F.cross_entropy(logits.float(), ids, reduction="none"), ids >= 0)


def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)
