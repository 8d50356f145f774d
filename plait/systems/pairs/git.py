"""GIT: A Generative Image-to-text Transformer for Vision and Language. Wang et al., 2022. arXiv:2205.14100.

New here: one picture encoder, one text decoder, one loss. The decoder is a plain transformer over picture tokens and,
after them, words: picture tokens see each other, a word sees the picture and the words before it. So a caption, the
answer to a question (which is text already there), what happens in a film (frames one after another, each with a
learned mark of its time) and the name of a class (words that a list allows) are all written by the same model, word by
word.

Differs: the picture goes through the decoder once and is remembered, also in training; the words then follow. That is
the same sum, since no picture token sees a word. Places are counted over real words only, so that padding before a text
changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plait.core.block import Attention, FeedForward, QuickGELU, Stack
from plait.core.init import torch_default
from plait.core.memory import Memory
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename, View
from plait.errors import PlaitError
from plait.parts.positions.learned import SequencePositions
from plait.parts.presence import fill_absent, masked
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.encoder import post_norm_blocks
from plait.parts.towers.layouts import bert_layers, clip_vision
from plait.parts.towers.picture import PictureTower

TextNorm = partial(nn.LayerNorm, eps=1e-12)


class Words(nn.Module):
    """ids (B, N) at the places (B, N) of a text -> (B, N, D), normed."""

    def __init__(self, vocab: int, length: int, width: int, dropout: float):
        super().__init__()
        self.words, self.positions = WordTokens(vocab, width), SequencePositions(length, width)
        self.norm, self.drop = TextNorm(width), nn.Dropout(dropout)

    def forward(self, ids: Tensor, places: Tensor) -> Tensor:
        return self.drop(self.norm(self.positions(self.words(ids), places).x))


class Cache(NamedTuple):
    """All that the decoder has read, and how many words that holds (B,)."""

    memory: Memory
    words: Tensor


class GIT(nn.Module):
    """A picture and the text so far -> what the next word is. A row may lack either.

    batch["image"] is (B, 3, H, W), or (B, T, 3, H, W) for a film of at most `frames` frames; other multiples of the
    patch than `image` are resampled. batch["text"] (B, N) is a text that is there already, such as a question.
    vocab: V. length: the most words. begin, end: the ids that a text starts and ends with. width, depth, heads: the
    decoder.
    """

    takes = ("image", "text")
    fits = ("image", "vocab")
    scheme = {nn.Conv2d: torch_default, nn.ParameterList: lambda frames: [nn.init.zeros_(p) for p in frames]}

    def __init__(
        self, *, image=(224, 224), patch=16, image_width=768, image_depth=12, image_heads=12, frames=0,
        vocab=30522, length=1024, begin=101, end=102, width=768, depth=6, heads=12, dropout=0.1,
    ):  # fmt: skip
        super().__init__()
        self.width, self.vocab, self.length, self.begin, self.end = width, vocab, length, begin, end
        self.blanks = {"image": ((3, *image), torch.float32), "text": ((1,), torch.int64)}
        feed = partial(FeedForward, act=QuickGELU)
        self.picture = PictureTower(image, patch, image_width, image_depth, image_heads, before=True, feed=feed)
        self.times = nn.ParameterList(nn.Parameter(torch.empty(image_width)) for _ in range(frames))
        self.bridge = nn.Sequential(nn.Linear(image_width, width), nn.LayerNorm(width))
        self.text_embedding = Words(vocab, length, width, dropout)
        mix = partial(Attention, causal=True, dropout=dropout)
        self.stack = Stack(*post_norm_blocks(width, depth, heads, 4 * width, norm=TextNorm, mix=mix, dropout=dropout))
        self.head = nn.Linear(width, vocab)

    def see(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) or (B, T, 3, H, W) -> (B, M, D): all picture tokens, those of a film frame after frame."""
        if image.dim() == 4:
            return self.bridge(self.picture(image).x)
        if image.shape[1] > len(self.times):
            raise PlaitError(
                f"got a film of {image.shape[1]} frames, expected at most {len(self.times)}: leave some out"
            )
        frames = self.picture(image.flatten(0, 1)).x.unflatten(0, image.shape[:2])  # (B, T, M, Dv)
        times = torch.stack(list(self.times[: image.shape[1]]))
        return self.bridge((frames + times[:, None]).flatten(1, 2))

    def prefill(self, batch: dict) -> Cache:
        """Read the picture and, where there is one, the text so far."""
        s = fill_absent(batch, self.blanks)
        x = self.see(s.values["image"])
        keep = masked(None, s.present["image"], x.shape[1])
        allow = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)  # no patch comes before another
        memory = self.stack(Tokens(x, keep=keep, memory=Memory()).reading(allow=allow)).memory
        cache = Cache(memory, torch.zeros_like(keep[:, 0], dtype=torch.int64))
        if "text" not in batch:
            return cache
        return self.step(s.values["text"], cache, s.mask("text"))[1]

    def step(self, tokens: Tensor, cache: Cache, keep: Tensor | None = None) -> tuple[Tensor, Cache]:
        """The next words (B, N), one or many, keep (B, N) -> (B, N, V) logits of the word after each, and the cache
        with them in it."""
        n = tokens.shape[1]
        if n > self.length:
            raise PlaitError(
                f"a text of {n} tokens, but there are places for {self.length}: cut it or build a longer model"
            )
        keep = torch.ones_like(tokens, dtype=torch.bool) if keep is None else keep
        places = (cache.words[:, None] + keep.cumsum(1) - 1).clamp(min=0)
        t = self.stack(Tokens(self.text_embedding(tokens, places), keep=keep, memory=cache.memory))
        return self.head(t.x), Cache(t.memory, cache.words + keep.sum(1))

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """{"words": (B, V)}: logits of the word that follows the text so far; of the first one where there is no
        text."""
        s = fill_absent(batch, self.blanks)
        ids, keep = s.values["text"], s.mask("text")
        rows, places = (torch.arange(n, device=ids.device) for n in ids.shape)
        bare = ~keep.any(1, keepdim=True) & (places == 0)  # (B, N): the first place of a text without a word
        seen = {**batch, "image": s.values["image"], "present": s.present}
        seen.pop("text", None)
        logits, _ = self.step(ids.masked_fill(bare, self.begin), self.prefill(seen), keep | bare)
        return {"words": logits[rows, ((keep | bare) * places).amax(1)]}


BASE = dict()
LARGE = dict(patch=14, image_width=1024, image_depth=24, image_heads=16)
FILM = dict(frames=6)
BASE_VQA = dict(image=(480, 480))
LARGE_VQA = LARGE | dict(image=(420, 420))

MODEL = GIT
TAKES = ("image", "text")
ROLES = ("generator",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), patch=8, image_width=32, image_depth=2, image_heads=2, vocab=64)
NANO = dict(image=(64, 64), patch=8, image_width=128, image_depth=3, image_heads=4)
SIZES = {
    "toy": TOY | dict(length=32, begin=2, end=3, width=48, depth=2, heads=4, dropout=0.0),
    "nano": NANO | dict(vocab=8192, length=256, begin=2, end=3, width=128, depth=2, heads=4),
    "base": BASE,
    "base_coco": BASE,
    "base_textcaps": BASE,
    "base_vqav2": BASE_VQA,
    "base_textvqa": BASE_VQA,
    "base_vatex": FILM,
    "base_msrvtt_qa": FILM,
    "large": LARGE,
    "large_coco": LARGE,
    "large_textcaps": LARGE,
    "large_vqav2": LARGE_VQA,
    "large_textvqa": LARGE_VQA,
    "large_vatex": LARGE | FILM,
    "large_msrvtt_qa": LARGE | FILM,
    "large_r": LARGE,
    "large_r_coco": LARGE,
    "large_r_textcaps": LARGE,
}

SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
MICROSOFT = SEEN | dict(source="transformers", licence="mit", begin=101, end=102, transformers=True)
WHOLE = MICROSOFT | dict(crop_pct=1.0)
WEIGHTS = {
    "base": WHOLE | dict(hub="microsoft/git-base"),
    "base_coco": WHOLE | dict(hub="microsoft/git-base-coco"),
    "base_textcaps": WHOLE | dict(hub="microsoft/git-base-textcaps"),
    "base_vqav2": WHOLE | dict(hub="microsoft/git-base-vqav2"),
    "base_textvqa": WHOLE | dict(hub="microsoft/git-base-textvqa"),
    "base_vatex": MICROSOFT | dict(hub="microsoft/git-base-vatex"),
    "base_msrvtt_qa": MICROSOFT | dict(hub="microsoft/git-base-msrvtt-qa"),
    "large": WHOLE | dict(hub="microsoft/git-large"),
    "large_coco": WHOLE | dict(hub="microsoft/git-large-coco"),
    "large_textcaps": WHOLE | dict(hub="microsoft/git-large-textcaps"),
    "large_vqav2": WHOLE | dict(hub="microsoft/git-large-vqav2"),
    "large_textvqa": WHOLE | dict(hub="microsoft/git-large-textvqa"),
    "large_vatex": MICROSOFT | dict(hub="microsoft/git-large-vatex"),
    "large_msrvtt_qa": MICROSOFT | dict(hub="microsoft/git-large-msrvtt-qa"),
    "large_r": WHOLE | dict(hub="microsoft/git-large-r"),
    "large_r_coco": WHOLE | dict(hub="microsoft/git-large-r-coco"),
    "large_r_textcaps": WHOLE | dict(hub="microsoft/git-large-r-textcaps"),
}

EYE = "git.image_encoder.vision_model"
RULES = {
    "transformers": [
        *clip_vision(f"{EYE}.", "picture."),
        View("git.img_temporal_embedding.{i}", "times.{i}", (-1,), (1, 1, -1)),
        Rename("git.visual_projection.visual_projection.{rest*}", "bridge.{rest*}"),
        Rename("git.embeddings.word_embeddings.weight", "text_embedding.words.table.weight"),
        Rename("git.embeddings.position_embeddings.weight", "text_embedding.positions.table"),
        Rename("git.embeddings.LayerNorm.{p}", "text_embedding.norm.{p}"),
        *bert_layers("git.encoder.layer.{i}"),
        Rename("output.{p}", "head.{p}"),
        Drop("git.embeddings.position_ids"),
    ],
}
