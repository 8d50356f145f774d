"""Writing with any system of the role `generator`, word by word: greedily or by chance (`generate`), or by beams
(`beam`).

Rows are written side by side and know nothing of each other: what a row gets is what it would get alone, also after
others have ended.
All of it runs without gradients; the model should be in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from plait.core.roles import Generator
from plait.errors import PlaitError

Pick = Callable[[Tensor], Tensor]  # log-probabilities (B, V), -inf = not allowed -> the chosen words (B,)


class Written(NamedTuple):
    """tokens (B, N) int64: without the beginning, with the end, 0 after it. keep (B, N) bool: up to the end.

    score (B,): the model's log-probability of the text; of beams, divided by its length (with the end) to the power of
    the penalty.
    """

    tokens: Tensor
    keep: Tensor
    score: Tensor


class Trie:
    """All texts that may be written, as token ids without beginning and end; `end` closes each. Raises ValueError where
    there is none."""

    def __init__(self, texts: Iterable[Sequence[int]], end: int):
        self.next: list[dict[int, int]] = [{}]  # of each node: the node that a token leads to
        self.longest = 0
        for text in texts:
            node = 0
            for token in (*text, end):
                after = self.next[node].setdefault(int(token), len(self.next))
                if after == len(self.next):
                    self.next.append({})
                node = after
            self.longest = max(self.longest, len(text) + 1)
        if not self.longest:
            raise PlaitError("got no text that may be written, expected at least one")

    def mask(self, logs: Tensor, nodes: list[int]) -> Tensor:
        """Log-probabilities (R, V) with -inf for what no allowed text goes on with; nodes: where each row is, -1 = it
        has ended."""
        allowed = torch.zeros_like(logs, dtype=torch.bool)
        for row, node in enumerate(nodes):
            allowed[row, list(self.next[node]) if node >= 0 else slice(None)] = True
        return logs.masked_fill(~allowed, -torch.inf)

    def follow(self, nodes: list[int], tokens: list[int]) -> list[int]:
        """Where each row is after its token; -1 after an end."""
        after = (self.next[node].get(token, -1) if node >= 0 else -1 for node, token in zip(nodes, tokens, strict=True))
        return [node if node >= 0 and self.next[node] else -1 for node in after]


def best(logs: Tensor) -> Tensor:
    """The likeliest word (B,): greedy writing."""
    return logs.argmax(-1)


class Sampler:
    """A word by chance (B,), from the `top_k` likeliest ones and of these the likeliest that together have `top_p` of
    the probability.

    generator: on the CPU; the same seed gives the same texts for the same batch, on any device. temperature: below 1 is
    bolder.
    """

    def __init__(
        self, generator: torch.Generator, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
    ):
        if not temperature > 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
            raise PlaitError(
                f"got temperature {temperature}, top_k {top_k}, top_p {top_p}; expected more than 0, at least 1, and "
                "in (0, 1]"
            )
        self.generator, self.temperature, self.top_k, self.top_p = generator, temperature, top_k, top_p

    def __call__(self, logs: Tensor) -> Tensor:
        ranked, words = (logs / self.temperature).sort(dim=-1, descending=True, stable=True)
        share = ranked[:, : self.top_k].softmax(-1)
        sums = share.cumsum(-1)
        share = share.masked_fill(sums - share >= self.top_p, 0.0)  # the first one always stays
        sums = share.cumsum(-1)
        luck = torch.rand(len(logs), 1, generator=self.generator).to(sums) * sums[:, -1:]
        place = (sums <= luck).sum(-1, keepdim=True).clamp(max=(share > 0).sum(-1, keepdim=True) - 1)
        return words.gather(1, place)[:, 0]


def select(cache: Any, rows: Tensor) -> Any:
    """The cache of the rows `rows` (R,) int64, in this order."""
    return tree_map(lambda leaf: leaf.index_select(0, rows), cache)


@torch.no_grad()
def generate(
    model: Generator,
    batch: dict,
    *,
    most: int,
    pick: Pick = best,
    allowed: Trie | None = None,
    begin: Tensor | None = None,
) -> Written:
    """Write at most `most` words for every row, each chosen by `pick` (`best`, or a `Sampler`).

    allowed: write one of these texts. begin (B,): the word to go on from, such as the last of a question; None:
    `model.begin`.
    Raises ValueError where `most` words have no room in the model, or the allowed texts none in `most`.
    """
    cache, token = start(model, batch, most, allowed, begin)
    done, score = torch.zeros_like(token[:, 0], dtype=torch.bool), torch.zeros(len(token), device=token.device)
    nodes, words, keep = [0] * len(token), [], []
    for _ in range(most):
        logits, cache = model.step(token, cache, ~done[:, None])
        logs = logits[:, -1].float().log_softmax(-1)
        logs = logs if allowed is None else allowed.mask(logs, nodes)
        chosen = pick(logs).masked_fill(done, 0)
        score = score + logs.gather(1, chosen[:, None])[:, 0].masked_fill(done, 0.0)
        words.append(chosen)
        keep.append(~done)
        done = done | (chosen == model.end)
        if done.all():
            break
        token = chosen[:, None]
        nodes = nodes if allowed is None else allowed.follow(nodes, chosen.tolist())
    return Written(torch.stack(words, 1), torch.stack(keep, 1), score)


@torch.no_grad()
def beam(
    model: Generator,
    batch: dict,
    *,
    most: int,
    size: int = 4,
    penalty: float = 0.6,
    allowed: Trie | None = None,
    begin: Tensor | None = None,
) -> Written:
    """The best text of at most `most` words that `size` beams a row find; arguments and errors as in `generate`.

    penalty: texts compare by log-probability / length ** penalty: 0 favours short ones, 1 compares means. A text that
    ends counts where it is among the `size` best at that moment. A row is done when nothing that its beams can still
    become beats what it has.
    """
    if size < 1:
        raise PlaitError(f"got {size} beams, expected at least 1")
    cache, token = start(model, batch, most, allowed, begin)
    rows, device = len(token), token.device
    first = torch.arange(rows, device=device)[:, None] * size  # (B, 1): where each row's beams begin
    cache, token = (
        select(cache, torch.arange(rows, device=device).repeat_interleave(size)),
        token.repeat_interleave(size, 0),
    )
    live = torch.full((rows, size), -torch.inf, device=device)  # log-probabilities of the beams
    live[:, 0] = 0.0  # all beams are the same at first
    texts = torch.zeros(rows, size, 0, dtype=torch.int64, device=device)
    found, text = (
        torch.full((rows,), -torch.inf, device=device),
        torch.zeros(rows, most, dtype=torch.int64, device=device),
    )
    length, open_ = (
        torch.zeros(rows, dtype=torch.int64, device=device),
        torch.ones(rows, dtype=torch.bool, device=device),
    )
    nodes = [0] * rows * size
    for n in range(1, most + 1):
        logits, cache = model.step(token, cache)
        logs = logits[:, -1].float().log_softmax(-1)
        logs = logs if allowed is None else allowed.mask(logs, nodes)
        sums = live[..., None] + logs.unflatten(0, (rows, size))  # (B, K, V)
        top, at = sums.flatten(1).topk(2 * size)  # at most `size` of these end
        parent, word = at // sums.shape[2], at % sums.shape[2]
        texts = torch.cat([texts.gather(1, parent[..., None].expand(-1, -1, n - 1)), word[..., None]], 2)
        ended = word == model.end

        final = (ended | (n == most)) & (torch.arange(2 * size, device=device) < size) & open_[:, None]
        score, which = (top / n**penalty).masked_fill(~final, -torch.inf).max(1)
        better = score > found
        found, length = torch.where(better, score, found), length.masked_fill(better, n)
        text[better, :n] = texts[better, which[better]]

        live, on = top.masked_fill(ended, -torch.inf).topk(size)
        open_ = open_ & (live[:, 0] / (most if penalty > 0 else n + 1) ** penalty > found)
        if n == most or not open_.any():
            break
        parent, word, texts = parent.gather(1, on), word.gather(1, on), texts.gather(1, on[..., None].expand(-1, -1, n))
        source, token = (first + parent).flatten(), word.flatten()[:, None]
        cache = select(cache, source)
        if allowed is not None:
            nodes = allowed.follow([nodes[i] for i in source.tolist()], token[:, 0].tolist())
    keep = torch.arange(most, device=device) < length[:, None]
    longest = int(length.max())
    return Written(text.masked_fill(~keep, 0)[:, :longest], keep[:, :longest], found)


def start(model: Generator, batch: dict, most: int, allowed: Trie | None, begin: Tensor | None) -> tuple[Any, Tensor]:
    """The cache of what there is to read, and the first words (B, 1)."""
    said = batch["text"].shape[1] if "text" in batch else 0
    if not 1 <= most <= model.length - said:
        raise PlaitError(
            f"got most={most} after {said} words, expected 1 to {model.length - said}: the model has {model.length} "
            "places"
        )
    if allowed is not None and allowed.longest > most:
        raise PlaitError(f"got most={most}, but the longest allowed text has {allowed.longest} words with its end")
    cache = model.prefill(batch)
    if begin is None:
        leaf = next((leaf for leaf in tree_leaves(cache) if leaf is not None), torch.empty(1))  # nothing read: one text
        begin = torch.full((leaf.shape[0],), model.begin, dtype=torch.int64, device=leaf.device)
    return cache, begin[:, None]
