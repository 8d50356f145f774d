"""Writing with any system of the role `generator`, word by word: greedily or by chance (`generate`; `stream` hands the
words out as they are written), or by beams (`beam`). `asking` makes of prompts what a model of words alone goes on
from.

Rows are written side by side and know nothing of each other: what a row gets is what it would get alone, also after
others have ended.
All of it runs without gradients; the model should be in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from plait.core.memory import Memory
from plait.core.roles import Generator
from plait.errors import PlaitError

TOGETHER = 256  # texts of a closed list that are read at once

Pick = Callable[[Tensor], Tensor]  # log-probabilities (B, V), -inf = not allowed -> the chosen words (B,)


class Written(NamedTuple):
    """tokens (B, N) int64: without the beginning, with the end, 0 after it. keep (B, N) bool: up to the end.

    score (B,): the model's log-probability of the text; of beams, divided by its length (with the end) to the power of
    the penalty.
    """

    tokens: Tensor
    keep: Tensor
    score: Tensor


class Ranked(NamedTuple):
    """answers (B, K) int64: which of a list of texts, the likeliest first; score (B, K): their log-probabilities."""

    answers: Tensor
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
    return tree_map(lambda leaf: leaf if leaf is None else leaf.index_select(0, rows), cache)


def asking(prompts: Sequence[Sequence[int]]) -> tuple[dict, Tensor]:
    """Prompts as ids, each as long as it is -> the batch {"text", "keep"} of all but their last words, padded in front,
    and these last words (B,): what `generate` takes as batch and `begin`. Raises ValueError for a prompt without a
    word."""
    if not prompts or not all(prompts):
        raise PlaitError("got a prompt without a word, expected at least one: put the beginning of a text there")
    longest = max(map(len, prompts)) - 1
    text, keep = torch.zeros(len(prompts), longest, dtype=torch.int64), torch.zeros(len(prompts), longest)
    for row, prompt in enumerate(prompts):
        text[row, longest + 1 - len(prompt) :] = torch.tensor(prompt[:-1], dtype=torch.int64)
        keep[row, longest + 1 - len(prompt) :] = 1
    last = torch.tensor([prompt[-1] for prompt in prompts])
    if not longest:
        return {}, last
    # where nothing is padded no mask is needed
    return ({"text": text} if keep.all() else {"text": text, "keep": {"text": keep > 0}}), last


class Word(NamedTuple):
    """What a step writes: a word a row (B,), its log-probability (B,), and which rows still wrote (B,)."""

    tokens: Tensor
    score: Tensor
    keep: Tensor


@torch.no_grad()
def stream(
    model: Generator,
    batch: dict,
    *,
    most: int,
    pick: Pick = best,
    allowed: Trie | None = None,
    begin: Tensor | None = None,
    stop: Sequence[Sequence[int]] = (),
    repetition: float = 1.0,
    laid_out: bool = False,
) -> Iterator[Word]:
    """Words as they are written, until all rows have ended; arguments and errors as in `generate`."""
    if not repetition > 0:
        raise PlaitError(f"got a penalty of {repetition} on repetition, expected more than 0: 1 is none")
    cache, token = start(model, batch, most, allowed, begin)
    done, nodes = torch.zeros_like(token[:, 0], dtype=torch.bool), [0] * len(token)
    written, seen = torch.zeros(len(token), 0, dtype=torch.int64, device=token.device), None
    for n in range(most):
        logits, cache = model.step(token, cache, ~done[:, None] if done.any() else None)
        if laid_out and n == 0:
            cache = roomy(cache, most)
        logits = logits[:, -1].float()
        if repetition != 1.0:
            seen = _said(batch, logits) if seen is None else seen
            seen.scatter_(1, token, True)
            logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        logs = logits.log_softmax(-1)
        logs = hushed(model, logs, n == 0) if allowed is None else allowed.mask(logs, nodes)
        chosen = pick(logs).masked_fill(done, 0)
        yield Word(chosen, logs.gather(1, chosen[:, None])[:, 0].masked_fill(done, 0.0), ~done)
        done, token = done | (chosen == model.end), chosen[:, None]
        if stop:
            written = torch.cat([written, token], 1)
            done = done | _stopped(written, stop)
        if done.all():
            return
        nodes = nodes if allowed is None else allowed.follow(nodes, chosen.tolist())


def generate(model: Generator, batch: dict, *, most: int, **how: Any) -> Written:
    """Write at most `most` words for every row.

    pick: chooses each, `best` or a `Sampler`. allowed: write one of these texts, whatever the model never writes
    otherwise. begin (B,): the word to go on from, such as the last of a question; None: `model.begin`. stop: sequences
    of words after which a text is over; they are part of it. repetition: by how much words that were there are less
    likely, as transformers' `repetition_penalty`. laid_out: lay out the memory for `most` words before, which is faster
    for long texts.
    Raises ValueError where `most` words have no room in the model, or the allowed texts none in `most`.
    """
    words = list(stream(model, batch, most=most, **how))
    score = torch.stack([word.score for word in words]).sum(0)
    return Written(torch.stack([w.tokens for w in words], 1), torch.stack([w.keep for w in words], 1), score)


@torch.no_grad()
def rank(model: Generator, batch: dict, texts: Tensor, keep: Tensor, *, most: int = 128) -> Ranked:
    """The likeliest of a closed list of texts, for every row, as ALBEF (arXiv:2107.07651) ranks answers: the `most`
    whose first words are the likeliest, by the log-probability of the whole of each.

    texts (A, N) int64 with beginning and end, keep (A, N) bool: a prefix of each. All of them are ranked where `most`
    is their number or more; at most `TOGETHER` texts are read at once. Raises PlaitError where a text has no word, or
    begins otherwise than the first.
    """
    if texts.dim() != 2 or texts.shape != keep.shape or texts.shape[1] < 2 or not keep[:, :2].all():
        raise PlaitError(
            f"got texts {tuple(texts.shape)} and keep {tuple(keep.shape)}, expected (A, N) of both, at least a "
            "beginning and a word in each"
        )
    if (texts[:, 0] != texts[0, 0]).any():
        raise PlaitError("got texts that begin otherwise than the first, expected one beginning for all")
    cache = model.prefill(batch)
    rows, count = tree_leaves(cache)[0].shape[0], min(most, len(texts))
    first = model.step(texts[:1, :1].expand(rows, 1), cache)[0][:, 0].float().log_softmax(-1)  # (B, V)
    chosen = first[:, texts[:, 1]].topk(count).indices  # (B, K)
    row = torch.arange(rows, device=first.device).repeat_interleave(count)
    found = []
    for part, which in zip(row.split(TOGETHER), chosen.flatten().split(TOGETHER)):
        asked, there = texts[which], keep[which]  # (R, N)
        logs = model.step(asked[:, :-1], select(cache, part), there[:, :-1])[0].float().log_softmax(-1)
        found.append(logs.gather(2, asked[:, 1:, None])[..., 0].masked_fill(~there[:, 1:], 0.0).sum(1))
    score, order = torch.cat(found).view(rows, count).sort(dim=1, descending=True, stable=True)
    return Ranked(chosen.gather(1, order), score)


def pieces(words: Iterable[Word], decode: Callable[[list[int]], str]) -> Iterator[list[str]]:
    """What each step of `stream` adds to the text of each row, "" where a letter is not whole yet; decode: from ids to
    a text."""
    said: list[list[int]] = []
    told: list[str] = []
    for word in words:
        said = said or [[] for _ in word.tokens]
        told = told or [""] * len(said)
        for ids, token, real in zip(said, word.tokens.tolist(), word.keep.tolist()):
            ids += [token] * real
        now = [decode(ids) for ids in said]
        whole = [old if new.endswith("\N{REPLACEMENT CHARACTER}") else new for old, new in zip(told, now)]
        yield [new[len(old) :] for old, new in zip(told, whole)]
        told = whole


def hushed(model: Generator, logs: Tensor, first: bool) -> Tensor:
    """Log-probabilities (B, V) with -inf for the words in `model.never`, and for the first word of a text for those in
    `model.never_first`, where the model has these."""
    words = (*getattr(model, "never", ()), *(getattr(model, "never_first", ()) if first else ()))
    return logs.index_fill(1, torch.tensor(words, device=logs.device), -torch.inf) if words else logs


def roomy(cache: Any, more: int) -> Any:
    """A cache whose memories have room for `more` words, in which they are written in place."""
    if isinstance(cache, Memory) and cache.keep is not None:
        return cache.laid_out(cache.keep.shape[1] + more)
    if isinstance(cache, tuple):
        parts = [roomy(part, more) for part in cache]
        return type(cache)(*parts) if hasattr(cache, "_fields") else tuple(parts)
    return cache


def _said(batch: dict, logits: Tensor) -> Tensor:
    """(B, V) bool: which words the text so far has."""
    seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    if (text := batch.get("text")) is not None:
        keep = batch.get("keep", {}).get("text", torch.ones_like(text, dtype=torch.bool))
        for row in range(len(text)):
            seen[row, text[row][keep[row]]] = True
    return seen


def _stopped(written: Tensor, stop: Sequence[Sequence[int]]) -> Tensor:
    """(B,) bool: which texts (B, N) end with one of the sequences."""
    over = torch.zeros(len(written), dtype=torch.bool, device=written.device)
    for text in stop:
        if 0 < len(text) <= written.shape[1]:
            over |= (written[:, -len(text) :] == torch.tensor([*text], device=written.device)).all(1)
    return over


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
    """The best text of at most `most` words that `size` beams a row find; batch, allowed and begin as in `generate`.

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
        logs = hushed(model, logs, n == 1) if allowed is None else allowed.mask(logs, nodes)
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
