"""UniXcoder: Unified Cross-Modal Pre-training for Code Representation. Guo, Lu, Duan, Wang, Zhou, Yin, 2022.
arXiv:2203.03850.

New here: one RoBERTa reads, writes, or reads and then writes: a token before the text says which, and the mask of
attention goes with it, both sides of all, the past alone, or both sides of what is read and the past of what is
written. A piece of code is the mean of its tokens as read; its syntax tree is told as a sequence from which the tree
can be had back.

Differs: places are counted over real tokens only, so that padding, on whichever side, changes nothing. What is written
begins with a token of its own; the public code lets the last token that was read say the first one. The published
vocabularies are not public in a form that says what the modes beside reading are called by, so that the published sizes
read alone.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Stack
from plait.core.memory import AnyMemory, Memory
from plait.core.tokens import Tokens, check_mask, mean
from plait.core.weights import Drop, Rename
from plait.errors import PlaitError
from plait.parts.positions.learned import CountedPositions
from plait.parts.presence import fill_absent
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers
from plait.parts.towers.sentences import Sentences
from plait.parts.towers.writer import following

READ, WRITE, BOTH = range(3)  # the modes, in the order of their ids
Tree = str | tuple[str, list]  # a leaf, or a name and what hangs on it


def flatten(tree: Tree) -> list[str]:
    """A tree as a sequence: a leaf is itself, a branch stands between its name with ",left" and with ",right"."""
    if isinstance(tree, str):
        return [tree]
    name, below = tree
    return [f"{name},left", *(word for part in below for word in flatten(part)), f"{name},right"]


def unflatten(words: list[str]) -> Tree:
    """The tree of which `flatten` gives these words. Raises PlaitError where there is none."""
    open_, done = [], []  # names with what hangs on them so far; whole trees
    for word in words:
        here = open_[-1][1] if open_ else done
        if word.endswith(",left"):
            open_.append((word.removesuffix(",left"), []))
        elif not word.endswith(",right"):
            here.append(word)
        elif open_ and open_[-1][0] == word.removesuffix(",right"):
            (open_[-2][1] if len(open_) > 1 else done).append(open_.pop())
        else:
            raise PlaitError(f"got {word!r} where {open_[-1][0] if open_ else 'nothing'} is open, expected its own end")
    if open_ or len(done) != 1:
        raise PlaitError(f"got {len(done)} whole trees and {len(open_)} open ones, expected one tree")
    return done[0]


class UniXcoder(Sentences):
    """Token ids (B, N), the first of which begins the text -> unit vectors (B, D); after `prefill`, words.

    slots: names of the inputs that it reads, each with its kind, if they are not one text. vocab: V. length: the
    longest text that is read before one as long is written. begin, end: ids. kinds: of segments, of which the first is
    used. modes: ids of the tokens for reading, writing, and both, None where they have a table of their own. scale: the
    factor of a cosine, in training.
    """

    def __init__(
        self, *, slots=None, vocab=51416, length=512, begin=0, end=2, width, depth, heads, hidden=None, kinds=1,
        modes=None, dropout=0.1, scale=20.0,
    ):  # fmt: skip
        super().__init__(slots, scale)
        self.width = self.embed_width = width
        self.length, self.begin, self.end = length, begin, end
        self.modes = tuple(range(3) if modes is None else modes)
        self.mode = nn.Embedding(3, width) if modes is None else None
        how = dict(kinds=kinds, dropout=dropout, positions=CountedPositions)
        self.text_embedding = TextEmbedding(vocab, 2 * length, width, nn.LayerNorm, **how)
        mix = partial(Attention, dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, hidden or 4 * width, mix=mix, dropout=dropout))

    def told(self, ids: Tensor, keep: Tensor | None, mode: int) -> Tokens:
        """Ids (B, N) -> Tokens (B, N + 2, D) as layers read them: begin, mode, end, the text."""
        e = self.text_embedding
        t, first = e.words(ids, keep), ids[:, :1]
        if mode >= len(self.modes):
            raise PlaitError("the public words tell no mode but reading: build a size whose modes have their own table")
        begins, whole = torch.ones_like(ids).cumsum(1) == 1, None
        if keep is not None:
            begins = keep & (keep.cumsum(1) == 1)
            whole = torch.cat([keep.any(1, keepdim=True).expand(-1, 2), keep], 1)
        start, end = (e.words(torch.full_like(first, i)).x for i in (self.begin, self.end))
        table = e.words.table if self.mode is None else self.mode
        said = table(torch.full_like(first, self.modes[mode]))
        x = torch.cat([start, said, torch.where(begins[..., None], end, t.x)], 1)
        return self.normed(e.positions(Tokens(x, keep=whole)), first)

    def normed(self, t: Tokens, first: Tensor) -> Tokens:
        """What the layers read of words in their places. first: any ids (B, 1)."""
        e = self.text_embedding
        return t.replace(x=e.drop(e.norm(t.x + e.kinds(torch.zeros_like(first)))))

    def tokens(self, ids: Tensor, keep: Tensor | None = None, mode: int = READ) -> Tokens:
        """ids (B, N) int64, keep (B, N) bool (None: all real) -> Tokens (B, N + 2, D), two of which say the mode."""
        t = self.told(ids, keep, mode)
        return self.stack(past(t) if mode == WRITE else t)

    def pool(self, t: Tokens) -> Tensor:
        return mean(t)

    def prefill(self, batch: dict) -> AnyMemory:
        """What was read of the text, both sides of it; of none, the mode of writing alone. Of several the first."""
        slot = self.takes[0]
        there = batch.get("present", {}).get(slot)
        if slot not in batch:
            ids = torch.full((1 if there is None else len(there), 1), self.begin, device=self.logit_scale.device)
            return self.stack(past(self.told(ids, None, WRITE)).replace(memory=Memory())).memory
        s = fill_absent(batch, self.blanks)
        return self.stack(self.told(s.values[slot], s.mask(slot), BOTH).replace(memory=Memory())).memory

    def step(self, tokens: Tensor, cache: AnyMemory, keep: Tensor | None = None) -> tuple[Tensor, AnyMemory]:
        """The next words (B, N), one or many -> (B, N, V) logits of the word after each, and the memory with them."""
        check_mask(keep, *tokens.shape)
        if tokens.shape[1] > self.length:
            raise PlaitError(f"a text of {tokens.shape[1]} words, but there are places for {self.length}: cut it")
        t = self.text_embedding.words(tokens, keep).replace(memory=cache)
        places = F.embedding(CountedPositions.FIRST + following(t), self.text_embedding.positions.table)
        out = self.stack(past(self.normed(t.replace(x=t.x + places), tokens[:, :1])))
        return self.say(out), out.memory

    def say(self, t: Tokens) -> Tensor:
        """Features (B, N, D) -> logits (B, N, V) by the word table."""
        return F.linear(t.x, self.text_embedding.table)


def past(t: Tokens) -> Tokens:
    """The tokens, each of which sees those before it and itself alone, and all of a memory."""
    n = t.x.shape[1]
    return t.reading(allow=torch.ones(n, n, dtype=torch.bool, device=t.x.device).tril())


OWN = dict(begin=2, end=3)
BASE = dict(width=768, depth=12, heads=12, kinds=10, modes=(6,))

MODEL = UniXcoder
TAKES = ("text",)
ROLES = ("embedder", "generator")
DEFAULT = "nano"
SIZES = {
    "toy": OWN | dict(vocab=64, length=24, width=32, depth=2, heads=2, dropout=0.0),
    "nano": OWN | dict(vocab=8192, length=256, width=192, depth=4, heads=3),
    "base": BASE,
    "base_nine": BASE,
    "base_unimodal": BASE,
}
SIZE_ROLES = {
    "base": ("embedder",),
    "base_nine": ("embedder",),
    "base_unimodal": ("embedder",),
}

# the words are vocab.json and merges.txt, of which a tokenizer.json is to be made
WORDS = "https://huggingface.co/microsoft/unixcoder-base"
MICROSOFT = dict(source="transformers", licence="apache-2.0", begin=0, end=2, max_tokens=510, tokenizer=WORDS)
WEIGHTS = {
    "base": MICROSOFT | dict(hub="microsoft/unixcoder-base", transformers=True),
    "base_nine": MICROSOFT | dict(hub="microsoft/unixcoder-base-nine", transformers=True),
    "base_unimodal": MICROSOFT | dict(hub="microsoft/unixcoder-base-unimodal", transformers=True),
}

# RobertaModel; the modes of our own sizes, which nobody else has, keep their name
RULES = {
    "transformers": [
        *bert_input("embeddings"), *bert_layers(), Drop("pooler.dense.{p}"), Rename("mode.weight", "mode.weight"),
    ]
}  # fmt: skip
