"""VisualBERT: A Simple and Performant Baseline for Vision and Language. Li, Yatskar, Yin, Hsieh, Chang, 2019.
arXiv:1908.03557.

New here: BERT itself reads pictures. What a detector sees in each region is projected to the width of words, with
vectors that say that it belongs to a picture, and stands behind the words in one sequence, through one norm and the
same layers. Nothing else is learnt for pictures: which word goes with which region is left to attention (`looks`), and
words that are hidden are guessed from what is seen (`guess`).

Differs: published sizes are handed the detector's features, a series of steps (R, F) where a table gives them, which it
then standardises, while their weights know them raw; sizes of ours look at pictures themselves, through a tower that
learns with the rest: its map's places are the regions. Two pictures of one text (NLVR2) are two slots, told apart by
the vectors that the official code gives them. A hidden word always is the mask's; 15 of 100 are, and one at least,
never a text's first or last. Whether a text is that of the picture (`match`) has a head and no objective, since each
row is judged alone. The regions' own vectors start as others do, not as copies of the words'. `answers` of VQA are
read, as published, at the word before a text's end, which there is "[MASK]". The head that points at regions
(Flickr30K) and the ablations are left out.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import recorded
from plait.core.block import Attention, Stack
from plait.core.precision import wide
from plait.core.tokens import Tokens, join
from plait.core.weights import Drop, Rename, Rule, Tied, under
from plait.errors import PlaitError
from plait.parts.heads.words import WordHead, first_place
from plait.parts.positions.learned import SequencePositions
from plait.parts.presence import Blank, Streams, fill_absent, masked
from plait.parts.tokenizers.text_embedding import TextEmbedding
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_input, bert_layers, bert_words
from plait.parts.towers.levels import eyes

Norm = partial(nn.LayerNorm, eps=1e-12)
SHARE = 0.15  # of a text's words that are hidden


class Regions(nn.Module):
    """Features (B, R, F), keep (B, R) -> Tokens (B, R, D), not normed: projected, with the vectors of their kind and of
    a place, which is the first for all; the published table has as many as that of the words."""

    def __init__(self, features: int, length: int, width: int):
        super().__init__()
        self.proj, self.kinds = nn.Linear(features, width), nn.Embedding(2, width)
        self.positions = SequencePositions(length, width)

    def forward(self, x: Tensor, keep: Tensor, kind: int) -> Tokens:
        if x.dim() != 3 or x.shape[2] != self.proj.in_features:
            raise PlaitError(
                f"got regions {tuple(x.shape)}, expected (B, R, {self.proj.in_features}): features of a detector, "
                "of as many numbers as the model was built for (regions=)"
            )
        first = torch.zeros(1, dtype=torch.int64, device=x.device)
        t = self.positions(Tokens(self.proj(x.masked_fill(~keep[..., None], 0.0)), keep=keep), first)
        return t.replace(x=t.x + self.kinds(first + kind))


def concealed(luck: Tensor, keep: Tensor) -> Tensor:
    """(B, N) bool: which words are hidden, those with the least luck (B, N) among the real ones between a text's first
    and last."""
    place = keep.cumsum(1)
    inner = keep & (place > 1) & (place < place[:, -1:])
    count = (SHARE * inner.sum(1, keepdim=True)).round().clamp(min=1)
    return inner & (luck.masked_fill(~inner, 2.0).argsort(1).argsort(1) < count)


class VisualBERT(nn.Module):
    """A batch of pictures, or of regions' features, and texts -> one vector that has read both, and what the heads that
    were built say of it.

    vision: the tower whose last map's places are a picture's regions; None: the slot `series` (B, R, F) holds their
    features, regions=F. pair: two pictures beside a text, slots numbered 0 and 1. length: most tokens of a text; mask:
    the id of a hidden word. last: what is fused is the word before the text's end, not the pooled first. Heads: guess
    (hidden words), match (is the text another picture's?), answers (how many, 0 for none; 1 says how well a row's
    answer fits, and of several rows the best is chosen).
    """

    fits = ("image", "vocab", "mask", "regions")

    def __init__(
        self, *, vision=None, regions=2048, pair=False, vocab=30522, length=512, mask=103, width=768, depth=12,
        heads=12, dropout=0.1, last=False, guess=False, match=False, answers=0,
    ):  # fmt: skip
        super().__init__()
        kind = "series" if vision is None else "image"
        self.eyes = (f"{kind}_0", f"{kind}_1") if pair else (kind,)
        self.takes, self.kinds = (*self.eyes, "text"), (0, 1) if pair else (1,)
        self.width, self.part_widths, self.mask, self.length = width, {}, mask, length
        regions = regions if vision is None else eyes(vision, frozen=False)[-1]
        shape = (1, regions) if vision is None else (3, vision.multiple, vision.multiple)
        self.blanks: dict[str, Blank] = {eye: (shape, torch.float32) for eye in self.eyes}
        self.blanks["text"] = ((1,), torch.int64)
        self.vision: Any = vision
        self.text_embedding = TextEmbedding(vocab, length, width, Norm, dropout=dropout)
        self.regions = Regions(regions, length, width)
        how = dict(norm=Norm, mix=partial(Attention, dropout=dropout), dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, 4 * width, **how))
        self.pooler = None if last else nn.Linear(width, width)
        self.word_head = WordHead(width, vocab, Norm) if guess else None
        self.match = nn.Linear(width, 2) if match else None  # fused (B, D) -> (B, 2): a pair, no pair
        self.answer = nn.Linear(width, answers) if answers else None

    def see(self, s: Streams, eye: str, kind: int) -> Tokens:
        """The regions (B, R, D) of one slot, not normed."""
        x, keep = s.values[eye], s.keep.get(eye)
        if self.vision is not None:
            x, keep = self.vision.features(x)[-1][0].flatten(2).mT, None
        return self.regions(x, masked(keep, s.present[eye], x.shape[1]), kind)

    def near(self, words: Tensor) -> Tensor:
        """Places of the words that regions are known to go with, (B, R, A), -1 for none -> (B, R, D): the mean of their
        positions, zeros where there are none."""
        there = words >= 0
        x = F.embedding(words.clamp(min=0), self.text_embedding.positions.table) * there[..., None]
        return x.sum(2) / there.sum(2, keepdim=True).clamp(min=1)

    def read(self, batch: dict, kinds: Tensor | None = None, words: Tensor | None = None) -> tuple[Tokens, Tensor]:
        """Tokens (B, N + R, D) of N words and the R regions of all pictures; and the ids (B, N). kinds (B, N): segments
        of the text, None: all the first. words (B, R, A): as `near` has them."""
        s = fill_absent(batch, self.blanks)
        ids, embed = s.values["text"], self.text_embedding
        text = embed(ids, s.mask("text"), kinds)
        seen = join(*(self.see(s, eye, kind) for eye, kind in zip(self.eyes, self.kinds)))
        x = seen.x if words is None else seen.x + self.near(words)
        seen = seen.replace(x=embed.drop(embed.norm(x)))
        return self.stack(join(text, seen, kinds=("text", "regions"))), ids

    def pool(self, t: Tokens, count: int) -> Tensor:
        """(B, D) of tokens that begin with `count` words: the leading one through the pooler, or the last but one that
        is real, as it is."""
        if self.pooler is not None:
            return self.pooler(t.x[:, 0]).tanh()
        place = (t.keep[:, :count].sum(1) - 2).clamp(min=0)
        return t.x[torch.arange(t.x.shape[0], device=t.x.device), place]

    def words(self, x: Tensor) -> Tensor:
        """(..., D) tokens -> (..., V) logits of the words that stand there."""
        if self.word_head is None:
            raise PlaitError("this VisualBERT guesses no words: got guess=False, build it with guess=True")
        return self.word_head(x, self.text_embedding.table)

    def looks(self, batch: dict) -> Tensor:
        """(B, L, H, N, R): how much each word looks at each region, in each head of each layer."""
        model, maps = recorded(self)
        n = model.read(batch)[1].shape[1]
        return torch.stack(maps[-len(self.stack.blocks) :], 1)[..., :n, n:]

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {}, "losses": {name: ()}}: the modalities meet in the first layer, so that none
        has a vector of its own."""
        t, ids = self.read(batch)
        return {"fused": self.pool(t, ids.shape[1]), "parts": {}, "losses": t.losses or {}}

    def places(self, batch: dict) -> dict[str, int]:
        """{"text": N}: those of the longest text, so that of each row always the same words are hidden."""
        return {"text": self.length}

    def guess(self, batch: dict, luck: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """{"costs": {"words": (B,)}}, the mean cross-entropy of the hidden words, NaN in rows that have none between a
        first and a last; and {"blind": ...}, that of all words alike."""
        s = fill_absent(batch, self.blanks)
        ids, keep = s.values["text"], s.mask("text")
        hidden = concealed(luck["text"][:, : ids.shape[1]], keep)
        t, _ = self.read({**batch, "text": ids.masked_fill(hidden, self.mask)})
        logits = wide(self.words(t.x[:, : ids.shape[1]]))
        costs = F.cross_entropy(logits.mT, ids, reduction="none") * hidden
        count = hidden.sum(1)
        cost = (costs.sum(1) / count.clamp(min=1)).masked_fill(count == 0, torch.nan)
        blind = torch.full_like(cost, math.log(logits.shape[2])).masked_fill(count == 0, torch.nan)
        return {"costs": {"words": cost}, "blind": {"words": blind}}

    def heads(self, t: Tokens, ids: Tensor) -> dict[str, Tensor]:
        """fused (B, D); and for each head: match (B, 2) logits, answer (B, K) logits, words (B, V) logits of what
        stands in each row's first hidden place (its leading token where nothing is hidden)."""
        out = {"fused": self.pool(t, ids.shape[1])}
        if self.match is not None:
            out["match"] = self.match(out["fused"])
        if self.answer is not None:
            out["answer"] = self.answer(out["fused"])
        if self.word_head is not None:
            out["words"] = self.words(first_place(t.x, (ids == self.mask) & t.keep[:, : ids.shape[1]]))
        return out

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """What the heads say, as `heads`."""
        return self.heads(*self.read(batch))


ENCODER = [
    *bert_input("embeddings"),
    Rename("embeddings.visual_token_type_embeddings.weight", "regions.kinds.weight"),
    Rename("embeddings.visual_position_embeddings.weight", "regions.positions.table"),
    Rename("embeddings.visual_projection.{p}", "regions.proj.{p}"),
    *bert_layers(),
    Rename("pooler.dense.{p}", "pooler.{p}"),
]
HEADS = [
    *bert_words("cls.predictions.transform", "word_head"),
    Rename("cls.predictions.bias", "word_head.bias"),
    Rename("cls.seq_relationship.{p}", "match.{p}"),
    Rename("cls.{p}", "answer.{p}"),
    Rename("vision.{rest*}", "vision.{rest*}"),  # nobody published a tower of pictures, which keeps our names
]
BIAS = ["cls.predictions.decoder.bias", "cls.predictions.bias"]
WORDS = ["cls.predictions.decoder.weight", "visual_bert.embeddings.word_embeddings.weight"]
TIED = [Tied(WORDS, "text_embedding.words.table.weight"), Tied(BIAS, "word_head.bias")]  # of which files may lack one
WHOLE = [*under(ENCODER, "visual_bert."), *HEADS]


def _heads(model: VisualBERT) -> list[Rule]:
    """VisualBertFor... any task; the file of one that reads its answers elsewhere has the pooler all the same."""
    spare = [Drop("visual_bert.pooler.dense.{p}")] if model.pooler is None else []
    return [*spare, *WHOLE]


RULES = {
    "transformers": [*ENCODER, *HEADS],  # VisualBertModel
    "transformers_pretraining": [*TIED, *WHOLE],
    "transformers_heads": _heads,
}

MODEL = VisualBERT
TAKES = ("image", "text")
ROLES = ("fuser", "masked")
PARTS = {"vision": ("image",)}
DEFAULT = "nano"
TOY = dict(vision="vit_toy", vocab=64, length=16, mask=4, width=32, depth=2, heads=2, dropout=0.0)
NANO = dict(vision="vit_nano", vocab=8192, length=128, mask=4, width=192, depth=6, heads=3)
PRE = dict(guess=True, match=True)
VQA = dict(regions=2048)
NLVR2 = dict(regions=1024)
VCR = dict(regions=512)
SIZES = {
    "toy": TOY | PRE | dict(answers=7),
    "nano": NANO | dict(guess=True),
    "nano_nlvr2": NANO | dict(pair=True),
    "vqa_coco_pre": VQA | PRE,
    "vqa_pre": VQA | PRE,
    "vqa": VQA | dict(last=True, answers=3129),
    "nlvr2_coco_pre": NLVR2 | PRE,
    "nlvr2_pre": NLVR2 | PRE | dict(pair=True),
    "nlvr2": NLVR2 | dict(pair=True, answers=2),
    "vcr_coco_pre": VCR | PRE,
    "vcr_pre": VCR | PRE,
    "vcr": VCR | dict(answers=1),
}
SEEN = ("series", "text")
BOTH = ("series", "series", "text")
SIZE_TAKES = {
    "nano_nlvr2": ("image", "image", "text"),
    "vqa_coco_pre": SEEN,
    "vqa_pre": SEEN,
    "vqa": SEEN,
    "nlvr2_coco_pre": SEEN,
    "nlvr2_pre": BOTH,
    "nlvr2": BOTH,
    "vcr_coco_pre": SEEN,
    "vcr_pre": SEEN,
    "vcr": SEEN,
}
FUSER = ("fuser",)
SIZE_ROLES = {
    "nano_nlvr2": FUSER,
    "vqa": FUSER,
    "nlvr2": FUSER,
    "vcr": FUSER,
}
TOKENS = dict(tokenizer="google-bert/bert-base-uncased/tokenizer.json", begin=101, end=102)
UCLA = TOKENS | dict(source="transformers_pretraining", licence="none stated", transformers=True)
TUNED = UCLA | dict(source="transformers_heads")
WEIGHTS = {
    "vqa_coco_pre": UCLA | dict(hub="uclanlp/visualbert-vqa-coco-pre"),
    "vqa_pre": UCLA | dict(hub="uclanlp/visualbert-vqa-pre"),
    "vqa": TUNED | dict(hub="uclanlp/visualbert-vqa"),
    "nlvr2_coco_pre": UCLA | dict(hub="uclanlp/visualbert-nlvr2-coco-pre"),
    "nlvr2_pre": UCLA | dict(hub="uclanlp/visualbert-nlvr2-pre"),
    "nlvr2": TUNED | dict(hub="uclanlp/visualbert-nlvr2"),
    "vcr_coco_pre": UCLA | dict(hub="uclanlp/visualbert-vcr-coco-pre"),
    "vcr_pre": UCLA | dict(hub="uclanlp/visualbert-vcr-pre"),
    "vcr": TUNED | dict(hub="uclanlp/visualbert-vcr"),
}
