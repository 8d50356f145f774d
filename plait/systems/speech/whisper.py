"""Whisper: Robust Speech Recognition via Large-Scale Weak Supervision. Radford et al., 2022. arXiv:2212.04356.

New here: nothing in the network, an encoder that hears half a minute of sound and a decoder that writes; what is new is
680,000 hours of sound with texts found beside it, and that all tasks are one text. The words `before` say what is
asked: that a transcript starts, in which language, whether it is to be translated, and without times. What was said in
the half minute before may stand in front. Some words are never written: signs that nobody says, as `never` has them.
Distil-Whisper (arXiv:2311.00430) has the encoder, and a few layers of the decoder.

Differs: places are counted over real words only, so that padding, on whichever side, changes nothing. Left out: times,
finding out the language, and going on from window to window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Attention, Block, CrossAttention, FeedForward, Pre, Stack
from plait.core.memory import AnyMemory, KeyValue, Memory
from plait.core.precision import wide
from plait.core.tokens import Tokens, check_mask
from plait.core.weights import Rename, Rule, Tied
from plait.errors import PlaitError
from plait.parts.positions.learned import SequencePositions
from plait.parts.presence import Blank, fill_absent
from plait.parts.tokenizers.spectrogram import LogMel
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.layouts import detr_cross, detr_layer
from plait.parts.towers.writer import following

FLOOR, RANGE = 1e-10, 8.0  # power; powers of ten below the loudest


class Ear(LogMel):
    """As `LogMel`, of sounds that are mirrored at their ends: nothing is more than RANGE below the loudest place of its
    sound. All frames are real."""

    def reset(self) -> None:
        super().reset()
        self.window.copy_(torch.hann_window(self.size))  # in float32, as published: 4e-5 away where it is quiet

    def forward(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, None]:
        check_mask(keep, *x.shape)
        x, kind = wide(x if keep is None else x.masked_fill(~keep, 0.0)), x.dtype
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.stft(x, self.size, self.hop, window=self.window.to(x.dtype), return_complex=True)
            power = torch.view_as_real(spectrum).square().sum(-1)[:, :, :-1].mT  # (B, T, F)
            logs = (power @ self.filters.to(x.dtype)).clamp(min=FLOOR).log10()
            return ((logs.maximum(logs.amax((1, 2), keepdim=True) - RANGE) + 4) / 4).to(kind), None


class Stem(nn.Module):
    """(B, T, mels) -> Tokens (B, (T + 1) // 2, D): two convolutions, and sines and cosines of places whose angles fall
    from the place itself to exactly 1 / 10,000 of it."""

    table: Tensor

    def __init__(self, mels: int, width: int, count: int):
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.register_buffer("table", torch.empty(count, width))  # saved, as public layouts have it

    def reset(self) -> None:
        count, half = self.table.shape[0], self.table.shape[1] // 2
        rates = torch.exp(torch.arange(half, device=self.table.device) * (-math.log(1e4) / (half - 1)))
        angles = torch.arange(count, device=self.table.device)[:, None] * rates
        self.table.copy_(torch.cat([angles.sin(), angles.cos()], 1))

    def forward(self, x: Tensor) -> Tokens:
        x = F.gelu(self.conv2(F.gelu(self.conv1(x.mT))))
        return Tokens(x.mT + self.table)


class SelfAttention(Attention):
    """Keys have no bias, which would add the same to all scores of a query."""

    def __init__(self, width: int, heads: int, causal: bool, dropout: float):
        super().__init__(width, heads, qkv_bias=False, causal=causal, dropout=dropout)
        self.q_bias, self.v_bias = (nn.Parameter(torch.empty(width)) for _ in "qv")

    def reset(self) -> None:
        nn.init.zeros_(self.q_bias), nn.init.zeros_(self.v_bias)

    def project(self, t: Tokens) -> tuple[Tensor, ...]:
        q, k, v = super().project(t)
        return q + self.q_bias.view(self.heads, 1, -1), k, v + self.v_bias.view(self.heads, 1, -1)


class Listen(CrossAttention):
    """To the context's "sound", whose keys have no bias either."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(width, heads, qkv_bias=False, dropout=dropout, stream="sound")
        self.q, self.v_bias = nn.Linear(width, width), nn.Parameter(torch.empty(width))

    def reset(self) -> None:
        nn.init.zeros_(self.v_bias)

    def keys_and_values(self, x: Tensor) -> KeyValue:
        k, v = super().keys_and_values(x)
        return k, v + self.v_bias.view(self.heads, 1, -1)


class Cache(NamedTuple):
    """What was read and written, and the sound that was heard, (B, M, D)."""

    memory: AnyMemory
    sound: Tensor


class Whisper(nn.Module):
    """A sound heard, a text written -> what the next word is. A row without a sound is silence.

    batch["audio"] is (B, S) at `rate` Hz, no longer than `seconds`, up to which silence is heard after it; in
    batch["text"] (B, N) stands what was said before. vocab: V. length: the most words. before: ids that are read before
    `begin` and say what is asked. begin, end: ids that a text starts and ends with. previous: the id in front of what
    was said before. never, never_first: ids that are not written at all, or not as the first word. hear_depth: layers
    of the encoder; depth: of the decoder.
    """

    takes = ("audio", "text")
    fits = ("rate", "seconds", "vocab")

    def __init__(
        self, *, rate=16000, mels=80, seconds=30.0, vocab, length, before=(), begin, end, previous=None,
        never=(), never_first=(), width, hear_depth, depth, heads, dropout=0.0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.length, self.begin, self.end = width, length, begin, end
        self.before, self.previous, self.never, self.never_first = before, previous, never, never_first
        self.samples, self.drop = round(rate * seconds), nn.Dropout(dropout)
        self.blanks: dict[str, Blank] = {"audio": ((self.samples,), torch.float32), "text": ((1,), torch.int64)}
        self.ear = Ear(rate, mels)
        self.stem = Stem(mels, width, (self.samples // self.ear.hop + 1) // 2)

        def layer(writes: bool) -> Block:
            def step(f: nn.Module) -> Pre:
                return Pre(nn.LayerNorm(width), f, nn.Dropout(dropout))

            listen = step(Listen(width, heads, dropout)) if writes else None
            mix, feed = SelfAttention(width, heads, writes, dropout), FeedForward(width, 4 * width)
            return Block(step(mix), step(feed), listen)

        self.hearer, self.norm_heard = Stack(*(layer(False) for _ in range(hear_depth))), nn.LayerNorm(width)
        self.words = WordTokens(vocab, width)
        self.positions = SequencePositions(length + len(before) + (previous is not None), width)
        self.stack = Stack(*(layer(True) for _ in range(depth)), gives=("sound",))
        self.norm = nn.LayerNorm(width)

    def hear(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Waveforms (B, S), keep (B, S) -> (B, M, D), as many for each sound. ValueError where they are too long."""
        if x.shape[1] > self.samples:
            raise PlaitError(f"got sounds of {x.shape[1]} samples, expected at most {self.samples}: cut them")
        more = (0, self.samples - x.shape[1])
        t = self.stem(self.ear(F.pad(x, more), keep if keep is None else F.pad(keep, more))[0])
        return self.norm_heard(self.hearer(t.replace(x=self.drop(t.x))).x)

    def read(self, ids: Tensor, cache: Cache, keep: Tensor | None = None) -> tuple[Tensor, Cache]:
        """The next words (B, N) -> their features (B, N, D), and the cache with them."""
        t = Tokens(self.words(ids).x, keep=keep, memory=cache.memory)
        x = self.drop(self.positions(t, following(t)).x)
        out = self.stack(t.replace(x=x).reading(sound=Tokens(cache.sound)))
        return self.norm(out.x), cache._replace(memory=out.memory)

    def prefill(self, batch: dict) -> Cache:
        """Hear the sound; read what was said before, where there is any, and what is asked."""
        s = fill_absent(batch, self.blanks)
        sound = self.hear(s.values["audio"], s.keep.get("audio"))
        pages: tuple[dict[str, KeyValue], ...] = ({},) * len(self.stack.blocks)
        there = torch.ones(sound.shape[0], 0, dtype=torch.bool, device=sound.device)
        cache, ids, keep = Cache(Memory(pages, there), sound), [], []
        if "text" in batch:
            text, real = s.values["text"], s.mask("text")
            if text.shape[1] > self.length:
                raise PlaitError(f"a text of {text.shape[1]} words, but there are places for {self.length}: cut it")
            if self.previous is not None:
                ids, keep = [torch.full_like(text[:, :1], self.previous)], [real.any(1, keepdim=True)]
            ids, keep = [*ids, text], [*keep, real]
        if self.before:
            asked = torch.tensor(self.before, device=sound.device).expand(sound.shape[0], -1)
            ids, keep = [*ids, asked], [*keep, torch.ones_like(asked, dtype=torch.bool)]
        return self.read(torch.cat(ids, 1), cache, torch.cat(keep, 1))[1] if ids else cache

    def step(self, tokens: Tensor, cache: Cache, keep: Tensor | None = None) -> tuple[Tensor, Cache]:
        """The next words (B, N), one or many -> (B, N, V) logits of the word after each, and the cache with them."""
        if tokens.shape[1] > self.length:
            raise PlaitError(f"a text of {tokens.shape[1]} words, but there are places for {self.length}: cut it")
        x, cache = self.read(tokens, cache, keep)
        return F.linear(x, self.words.table.weight), cache

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """{"words": (B, V)}: logits of the first word of what is said."""
        cache = self.prefill(batch)
        begin = torch.full((cache.sound.shape[0], 1), self.begin, device=cache.sound.device)
        return {"words": self.step(begin, cache)[0][:, 0]}


# Signs, which nobody says, and the words of the prompt.
SIGNS_EN = (
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 357, 366, 438, 532, 685, 705,
    796, 930, 1058, 1220, 1267, 1279, 1303, 1343, 1377, 1391, 1635, 1782, 1875, 2162, 2361, 2488, 3467, 4008, 4211,
    4600, 4808, 5299, 5855, 6329, 7203, 9609, 9959, 10563, 10786, 11420, 11709, 11907, 13163, 13697, 13700, 14808,
    15306, 16410, 16791, 17992, 19203, 19510, 20724, 22305, 22935, 27007, 30109, 30420, 33409, 34949, 40283, 40493,
    40549, 47282, 49146,
)  # fmt: skip
SIGNS = (
    1, 2, 7, 8, 9, 10, 14, 25, 26, 27, 28, 29, 31, 58, 59, 60, 61, 62, 63, 90, 91, 92, 93, 359, 503, 522, 542, 873, 893,
    902, 918, 922, 931, 1350, 1853, 1982, 2460, 2627, 3246, 3253, 3268, 3536, 3846, 3961, 4183, 4667, 6585, 6647, 7273,
    9061, 9383, 10428, 10929, 11938, 12033, 12331, 12562, 13793, 14157, 14635, 15265, 15618, 16553, 16604, 18362, 18956,
    20075, 21675, 22520, 26130, 26161, 26435, 28279, 29464, 31650, 32302, 32470, 36865, 42863, 47425, 49870, 50254,
)  # fmt: skip
ENGLISH = dict(vocab=51864, length=446, before=(50257,), begin=50362, end=50256, previous=50360) | dict(
    never=SIGNS_EN + (50257, 50357, 50358, 50359, 50360, 50361), never_first=(220, 50256)
)
MANY = dict(vocab=51865, length=444, before=(50258, 50259, 50359), begin=50363, end=50257, previous=50361) | dict(
    never=SIGNS + (50258, 50358, 50359, 50360, 50361, 50362), never_first=(220, 50257)
)
MORE = dict(vocab=51866, length=444, before=(50258, 50259, 50360), begin=50364, end=50257, previous=50362) | dict(
    never=SIGNS + (50258, 50359, 50360, 50361, 50362, 50363), never_first=(220, 50257), mels=128
)
TINY = dict(width=384, hear_depth=4, depth=4, heads=6)
BASE = dict(width=512, hear_depth=6, depth=6, heads=8)
SMALL = dict(width=768, hear_depth=12, depth=12, heads=12)
MEDIUM = dict(width=1024, hear_depth=24, depth=24, heads=16)
LARGE = dict(width=1280, hear_depth=32, depth=32, heads=20)

MODEL = Whisper
TAKES = ("audio", "text")
ROLES = ("generator",)
DEFAULT = "nano"
TOY = dict(rate=4000, mels=40, seconds=0.4, vocab=64, length=32, before=(4, 5), begin=2, end=3, previous=6)
OWN = dict(mels=40, vocab=8192, length=256, begin=2, end=3)
SIZES = {
    "toy": TOY | dict(never=(7, 9), never_first=(3, 8), width=32, hear_depth=2, depth=2, heads=4),
    "nano": OWN | dict(width=192, hear_depth=3, depth=2, heads=4, dropout=0.1),
    "tiny": MANY | TINY,
    "tiny_en": ENGLISH | TINY,
    "base": MANY | BASE,
    "base_en": ENGLISH | BASE,
    "small": MANY | SMALL,
    "small_en": ENGLISH | SMALL,
    "medium": MANY | MEDIUM,
    "medium_en": ENGLISH | MEDIUM,
    "large": MANY | LARGE,
    "large_v2": MANY | LARGE,
    "large_v3": MORE | LARGE,
    "large_v3_turbo": MORE | LARGE | dict(depth=4),
    "distil_small_en": ENGLISH | SMALL | dict(depth=4),
    "distil_medium_en": ENGLISH | MEDIUM | dict(depth=2),
    "distil_large_v2": MANY | LARGE | dict(depth=2),
    "distil_large_v3": MORE | LARGE | dict(depth=2),
}

OPENAI = dict(source="transformers", file="model.safetensors", rate=16000, licence="apache-2.0", transformers=True)
EN = OPENAI | dict(begin=50362, end=50256)
ALL = OPENAI | dict(begin=50363, end=50257)
V3 = OPENAI | dict(begin=50364, end=50257)
MIT = dict(licence="mit")
WEIGHTS = {
    "tiny": ALL | dict(hub="openai/whisper-tiny"),
    "tiny_en": EN | dict(hub="openai/whisper-tiny.en"),
    "base": ALL | dict(hub="openai/whisper-base"),
    "base_en": EN | dict(hub="openai/whisper-base.en"),
    "small": ALL | dict(hub="openai/whisper-small"),
    "small_en": EN | dict(hub="openai/whisper-small.en"),
    "medium": ALL | dict(hub="openai/whisper-medium"),
    "medium_en": EN | dict(hub="openai/whisper-medium.en"),
    "large": ALL | dict(hub="openai/whisper-large"),
    "large_v2": ALL | dict(hub="openai/whisper-large-v2"),
    "large_v3": V3 | dict(hub="openai/whisper-large-v3"),
    "large_v3_turbo": V3 | MIT | dict(hub="openai/whisper-large-v3-turbo"),
    "distil_small_en": EN | MIT | dict(hub="distil-whisper/distil-small.en"),
    "distil_medium_en": EN | MIT | dict(hub="distil-whisper/distil-medium.en"),
    "distil_large_v2": ALL | MIT | dict(hub="distil-whisper/distil-large-v2"),
    "distil_large_v3": V3 | MIT | dict(hub="distil-whisper/distil-large-v3"),
}

WORDS, HEARD, WRITTEN = "model.decoder.embed_tokens.weight", "model.encoder.layers.{i}", "model.decoder.layers.{i}"


def _layers(theirs: str, ours: str) -> list[Rule]:
    return [
        *(Rename(f"{theirs}.self_attn.{n}_proj.bias", f"{ours}.mix.f.{n}_bias") for n in "qv"),
        Rename(f"{theirs}.encoder_attn.v_proj.bias", f"{ours}.cross.f.v_bias"),
        *detr_layer(theirs, ours),
        *detr_cross(theirs, ours),
    ]


RULES = {
    "transformers": [
        Rename("model.encoder.conv{n}.{p}", "stem.conv{n}.{p}"),
        Rename("model.encoder.embed_positions.weight", "stem.table"),
        *_layers(HEARD, "hearer.blocks.{i}"),
        Rename("model.encoder.layer_norm.{p}", "norm_heard.{p}"),
        Tied(["proj_out.weight", WORDS], "words.table.weight"),
        Rename(WORDS, "words.table.weight"),
        Rename("model.decoder.embed_positions.weight", "positions.table"),
        *_layers(WRITTEN, "stack.blocks.{i}"),
        Rename("model.decoder.layer_norm.{p}", "norm.{p}"),
    ],
}
