"""Zipformer: A faster and better encoder for automatic speech recognition. Yao et al., 2023. arXiv:2310.11230.

New here: a stack of layers for each of several frame rates, down and up again as in a U-Net, each bypassed by what went
in. A layer computes attention weights once and uses them three times, between three feed-forwards and two convolutions.
BiasNorm keeps something of a vector's length; SwooshL and SwooshR replace Swish. With `chunk` it also reads sound as it
comes, chunk by chunk (`begin`, `stream`).

Differs: features are `LogMel`'s (Hann window, Slaney's mel scale, log10, about -1 to 1); the published models were
trained on Kaldi's (Povey window, pre-emphasis, HTK's scale from 20 Hz to 400 Hz below half the rate, natural log), so
that their weights fit but hear otherwise. A sound gets four frames of silence before and after it, so that no sound is
too short. A row does not depend on the padding of
its batch: what lies beyond its end is zero before the stem's convolution, and its last frame is repeated where frames
are averaged; in the official code both see the padding. A causal model has one chunk and one left context for training
and use. Balancers, whiteners and the penalty on scores change gradients by the training's state, and the schedules of
dropout rates follow its step: left out; dropout and layer dropping stay at their last rates. Dropped frames, constant
attention and masked features of training are left out too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Layer
from plait.core.init import torch_default
from plait.core.tokens import Tokens, mean, refuse
from plait.core.weights import Drop, Rename, Rule, View
from plait.parts.mixers.chunk_conv import ChunkConv, Convolution, SameConv
from plait.parts.mixers.shared_weights import GatedAverage, SharedWeights, WeightedValues, compact_positions
from plait.parts.swoosh import BiasNorm, ScaledLinear, SharedDropout, SwooshL, SwooshR
from plait.parts.tokenizers.spectrogram import SILENCE, LogMel

SIDE = 4  # frames of silence before and after a sound
AHEAD = 13  # frames of features that the stem reads beyond those it answers for


class Bypass(nn.Module):
    """x + scale * (y - x), a learned scale per channel. In training y is left out of a share `skip` of the rows."""

    def __init__(self, width: int, skip: float = 0.0):
        super().__init__()
        self.skip, self.scale = skip, nn.Parameter(torch.empty(width))

    def reset(self) -> None:
        nn.init.constant_(self.scale, 0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale = self.scale
        if self.training and self.skip > 0.0:
            scale = scale * (torch.rand(x.shape[0], 1, 1, device=x.device) >= self.skip)
        return x + (y - x) * scale


class Past(NamedTuple):
    """What a layer keeps of the chunks before: (B, L, ...) of the left context, and (B, kernel // 2, D) of each
    convolution."""

    key: Tensor | None = None
    gated: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    conv1: Tensor | None = None
    conv2: Tensor | None = None


class ZipformerBlock(Layer):
    """One layer: Tokens (B, N, D) -> the same, with the layer's `Past` for a memory. Of the context it reads far (L, P),
    the positions, and see, masks of the keys."""

    reads = ("far", "see")

    def __init__(
        self,
        width: int,
        hidden: int,
        weights: SharedWeights,
        value: int,
        convs: list[nn.Module],
        dropout: float,
        skip: float,
    ):
        super().__init__()
        self.weights = weights
        self.feed1, self.feed2, self.feed3 = (_feed(width, hidden * k // 4, dropout) for k in (3, 4, 5))
        self.average = GatedAverage(width, 3 * width // 4)
        self.look1, self.look2 = (WeightedValues(width, weights.heads, value) for _ in range(2))
        self.conv1, self.conv2 = (Convolution(width, conv) for conv in convs)
        self.middle, self.bypass, self.norm = Bypass(width), Bypass(width, skip), BiasNorm(width)

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "lengths", why="convolutions over time read every frame alike, in order")
        start, x, keep, past = t.x, t.x, t.keep, t.memory or Past()
        weights, key = self.weights(x, t.read("far"), t.read("see"), past.key)
        x = x + self.feed1(x)
        y, gated = self.average(x, weights, past.gated)
        x = x + y
        y, first = self.look1(x, weights, past.first)
        x = x + y
        y, conv1 = self.conv1(x, keep, past.conv1)
        x = x + y
        x = self.middle(start, x + self.feed2(x))
        y, second = self.look2(x, weights, past.second)
        x = x + y
        y, conv2 = self.conv2(x, keep, past.conv2)
        x = x + y
        x = self.bypass(start, self.norm(x + self.feed3(x)))
        return t.replace(x=x, memory=Past(key, gated, first, second, conv1, conv2))


def _feed(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), SwooshL(), SharedDropout(dropout), ScaledLinear(hidden, width, 0.1))


class Halve(nn.Module):
    """Every `stride` frames become one, a learned average; the last real frame stands for those missing in its
    group."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride, self.share = stride, nn.Parameter(torch.empty(stride))

    def reset(self) -> None:
        nn.init.zeros_(self.share)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        if keep is not None:
            last = (keep.sum(1) - 1).clamp(min=0)[:, None, None]  # (B, 1, 1)
            x = torch.where(keep[..., None], x, x.gather(1, last.expand(-1, 1, x.shape[2])))
        spare = -x.shape[1] % self.stride
        if spare:
            x = torch.cat([x, x[:, -1:].expand(-1, spare, -1)], 1)
        return (x.unflatten(1, (-1, self.stride)) * self.share.softmax(0)[:, None]).sum(2)


class Stage(nn.Module):
    """Layers at one frame rate: (B, N, D), keep (B, N) or None, see -> (B, N, D), and their pasts."""

    def __init__(self, blocks: list[ZipformerBlock]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(
        self, x: Tensor, keep: Tensor | None, see: Tensor | None, pasts: list[Past]
    ) -> tuple[Tensor, list[Past]]:
        before = 0 if pasts[0].key is None else pasts[0].key.shape[1]
        far = compact_positions(x.shape[1], before, self.blocks[0].weights.positions, x.device)
        t, after = Tokens(x, keep=keep).reading(far=far, see=see), []
        for block, past in zip(self.blocks, pasts):
            t = block(t.replace(memory=past))
            after.append(t.memory)
        return t.x, after


class Slower(nn.Module):
    """A stage `stride` times slower than what comes in, and a bypass around it."""

    def __init__(self, inner: Stage, width: int, stride: int):
        super().__init__()
        self.inner, self.stride, self.halve, self.bypass = inner, stride, Halve(stride), Bypass(width)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.inner.blocks

    def forward(
        self, x: Tensor, keep: Tensor | None, see: Tensor | None, pasts: list[Past]
    ) -> tuple[Tensor, list[Past]]:
        s = self.stride
        few = None if keep is None else keep[:, ::s]
        see = see if see is None else see[:, ::s] if see.dim() == 2 else see[:, ::s, ::s]
        y, pasts = self.inner(self.halve(x, keep), few, see, pasts)
        return self.bypass(x, y.repeat_interleave(s, 1)[:, : x.shape[1]]), pasts


class Stem(nn.Module):
    """Features (B, T, mels) -> (B, N, D), N = (T - 7) // 2: three convolutions, then a ConvNeXt layer over time and
    pitch."""

    def __init__(self, mels: int, width: int, channels: tuple[int, int, int], dropout: float):
        super().__init__()
        a, b, c = channels
        self.bands = ((mels - 1) // 2 - 1) // 2
        self.convs = nn.Sequential(
            nn.Conv2d(1, a, 3, padding=(0, 1)),
            SwooshR(),
            nn.Conv2d(a, b, 3, 2),
            SwooshR(),
            nn.Conv2d(b, c, 3, (1, 2)),
            SwooshR(),
        )
        self.depth = nn.Conv2d(c, c, 7, padding=(0, 3), groups=c)
        self.up, self.act, self.down = nn.Conv2d(c, 3 * c, 1), SwooshL(), nn.Conv2d(3 * c, c, 1)
        self.out, self.norm, self.drop = nn.Linear(self.bands * c, width), BiasNorm(width), SharedDropout(dropout)

    def forward(self, x: Tensor, keep: Tensor | None, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """keep (B, T) -> frames beyond the end are zero. past: (B, C, 3, bands) frames before; the last 3 of x then
        only look ahead."""
        x = self.convs(x[..., None].permute(0, 3, 1, 2))  # (B, C, N, bands) in channels-last memory
        if keep is not None:
            x = x.masked_fill(~stem_keep(keep)[:, None, :, None], 0.0)
        if past is None:
            y = self.depth(F.pad(x, (0, 0, 3, 3)))
        else:
            ready = x.shape[2] - 3
            y = torch.cat([past, x], 2)
            x, past, y = x[:, :, :ready], y[:, :, ready : ready + 3], self.depth(y)
        x = x + self.down(self.act(self.up(y)))
        return self.drop(self.norm(self.out(x.transpose(1, 2).flatten(2)))), past


def stem_keep(keep: Tensor) -> Tensor:
    """keep (B, T) of the features -> (B, N) of the stem's frames, each real where all it reads is (but for the
    ConvNeXt's sides)."""
    return keep[:, 8::2]


class Stream(NamedTuple):
    """Where a stream stands: the last features (B, 13, mels) and which are real, frames of the stem, which of the left
    context is real."""

    features: Tensor
    keep: Tensor
    stem: Tensor
    real: Tensor
    blocks: list[list[Past]]


class Zipformer(nn.Module):
    """Waveforms (B, S) at `rate` Hz, keep (B, S) -> logits (B, K), or (B, D) with num_classes=0; `transcribe` gives
    logits per frame.

    A tuple has an entry per stage. query, place, positions, value: widths of `SharedWeights` and of the values per
    head. down: frames of 20 ms per token at the end. chunk, left: for streaming, the frames of 20 ms of a chunk and how
    many before it are seen, both multiples of every stride. labels: of `transcribe`, 0 = none; label 0 is CTC's blank.
    """

    takes = ("audio",)
    fits = ("rate",)
    classifier = ("head.", "speak.")
    scheme = {nn.Linear: torch_default, nn.Conv1d: torch_default, nn.Conv2d: torch_default}

    def __init__(
        self, *, rate=16000, mels=80, channels=(8, 32, 128), strides, depths, widths, hidden, heads, kernels, query=32, value=12, place=4,
        positions=48, down=2, chunk=None, left=None, labels=0, num_classes=0, dropout=0.1, skip=0.035,
    ):  # fmt: skip
        super().__init__()
        if chunk is not None and (chunk % max(strides) or not left or left % chunk or chunk % down):
            raise ValueError(
                f"chunk {chunk}, left {left}: chunk must be a multiple of {max(strides)} and {down}, left one of it"
            )
        self.widths, self.width, self.strides, self.down, self.chunk, self.left = (
            widths,
            max(widths),
            strides,
            down,
            chunk,
            left,
        )
        self.logmel = LogMel(rate, mels)
        self.stem = Stem(mels, widths[0], channels, dropout)
        self.stages = nn.ModuleList()
        for depth, width, hid, h, kernel, s in zip(depths, widths, hidden, heads, kernels, strides, strict=True):
            blocks = []
            for _ in range(depth):
                convs = [
                    SameConv(width, kernel) if chunk is None else ChunkConv(width, kernel, chunk // s) for _ in range(2)
                ]
                weights = SharedWeights(width, h, query, place, positions)
                blocks.append(ZipformerBlock(width, hid, weights, value, convs, dropout, skip * s**0.5))
            self.stages.append(Stage(blocks) if s == 1 else Slower(Stage(blocks), width, s))
        self.halve = Halve(down)
        self.speak = nn.Linear(self.width, labels) if labels else None
        self.head = nn.Linear(self.width, num_classes) if num_classes else nn.Identity()

    def features(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, S), keep (B, S) -> features (B, T, mels) with silence on both sides, keep (B, T)."""
        x, keep = self.logmel(x, keep)
        return F.pad(x, (0, 0, SIDE, SIDE), value=SILENCE), None if keep is None else F.pad(
            keep, (2 * SIDE, 0), value=True
        )

    def frames(self, samples: int) -> int:
        """How many tokens a sound of so many samples becomes."""
        stem = (-(-samples // self.logmel.hop) + 1) // 2
        return -(-stem // self.down)

    def encode(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """Features (B, T, mels), T >= 9 -> Tokens (B, N, D), one each `down` * 20 ms."""
        x, _ = self.stem(x, keep, None)
        keep = see = None if keep is None else stem_keep(keep)
        if self.chunk is not None:
            chunk = torch.arange(x.shape[1], device=x.device) // self.chunk
            apart = chunk[:, None] - chunk
            near = (apart >= 0) & (apart <= self.left // self.chunk)
            see = near.expand(x.shape[0], -1, -1) if see is None else near & see[:, None]
        return self._stages(x, keep, see, [[Past()] * len(stage.blocks) for stage in self.stages])[0]

    def _stages(
        self, x: Tensor, keep: Tensor | None, see: Tensor | None, pasts: list[list[Past]]
    ) -> tuple[Tokens, list[list[Past]]]:
        outs, after = [], []
        for stage, width, past in zip(self.stages, self.widths, pasts):
            x = x[..., :width] if width <= x.shape[2] else F.pad(x, (0, width - x.shape[2]))
            x, past = stage(x, keep, see, past)
            outs.append(x)
            after.append(past)
        for earlier in reversed(outs[:-1]):  # each channel is the last stage's that has it
            x = torch.cat([x, earlier[..., x.shape[2] :]], 2) if earlier.shape[2] > x.shape[2] else x
        return Tokens(self.halve(x, keep), keep=None if keep is None else keep[:, :: self.down]), after

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """Waveforms (B, S), keep (B, S) -> Tokens (B, N, D)."""
        return self.encode(*self.features(x, keep))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean of the real tokens."""
        return mean(t)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.head(self.pool(self.tokens(x, keep)))

    def transcribe(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Waveforms (B, S), keep (B, S) -> logits (B, N, V), zeros beyond the end, and lengths (B,). ValueError without
        `labels`."""
        if self.speak is None:
            raise ValueError(
                "this Zipformer cannot transcribe: got labels=0, build it with labels=V, the blank of CTC counted in"
            )
        t = self.tokens(x, keep)
        logits = self.speak(t.x)
        if t.keep is None:
            return logits, torch.full(x.shape[:1], logits.shape[1], device=x.device)
        return logits.masked_fill(~t.keep[..., None], 0.0), t.keep.sum(1)

    # -- as it comes

    def begin(self, x: Tensor) -> Stream:
        """The first 13 frames of `features` (B, 13, mels), 4 of them silence -> where the stream stands. Needs a model
        with `chunk`."""
        if self.chunk is None or x.shape[1] != AHEAD:
            raise ValueError(
                f"got {x.shape[1]} frames, chunk={self.chunk}: a stream begins with {AHEAD} frames, for a model with a chunk"
            )
        b, stem = x.shape[0], x.new_zeros(x.shape[0], self.stem.depth.in_channels, 3, self.stem.bands)
        blocks = []
        for stage, stride in zip(self.stages, self.strides):
            left, pasts = self.left // stride, []
            for k in stage.blocks:
                value = k.look1.value.out_features
                seen = [
                    x.new_zeros(b, left, w)
                    for w in (k.weights.heads * k.weights.query, k.average.out.in_features, value, value)
                ]
                pasts.append(
                    Past(
                        *seen, *(x.new_zeros(b, c.conv.kernel // 2, c.conv.edges.shape[1]) for c in (k.conv1, k.conv2))
                    )
                )
            blocks.append(pasts)
        return Stream(
            x, x.new_ones(x.shape[:2], dtype=torch.bool), stem, x.new_zeros(b, self.left, dtype=torch.bool), blocks
        )

    def stream(self, x: Tensor, state: Stream, keep: Tensor | None = None) -> tuple[Tokens, Stream]:
        """The next 2 * chunk frames of features (B, 2 * chunk, mels) -> the chunk's Tokens (B, chunk / down, D), and
        the new state.

        keep: (B, 2 * chunk), False beyond the end of the sound; two more chunks of such frames bring out what is still
        inside.
        """
        if x.shape[1] != 2 * self.chunk:
            raise ValueError(
                f"got {x.shape[1]} frames, expected 2 * chunk = {2 * self.chunk}: fill the last ones up with keep=False"
            )
        keep = x.new_ones(x.shape[:2], dtype=torch.bool) if keep is None else keep
        features, real = torch.cat([state.features, x], 1), torch.cat([state.keep, keep], 1)
        y, stem = self.stem(features, real, state.stem)
        keep = stem_keep(real)[:, : self.chunk]
        see = torch.cat([state.real, keep], 1)
        t, blocks = self._stages(y, keep, see, state.blocks)
        return t, Stream(features[:, -AHEAD:], real[:, -AHEAD:], stem, see[:, -self.left :], blocks)


SIX = dict(strides=(1, 2, 4, 8, 4, 2), kernels=(31, 31, 15, 15, 15, 31), heads=(4, 4, 4, 8, 4, 4))
SMALL = SIX | dict(
    depths=(2, 2, 2, 2, 2, 2), widths=(192, 256, 256, 256, 256, 256), hidden=(512, 768, 768, 768, 768, 768)
)
MEDIUM = SIX | dict(
    depths=(2, 2, 3, 4, 3, 2), widths=(192, 256, 384, 512, 384, 256), hidden=(512, 768, 1024, 1536, 1024, 768)
)
LARGE = SIX | dict(
    depths=(2, 2, 4, 5, 4, 2), widths=(192, 256, 512, 768, 512, 256), hidden=(512, 768, 1536, 2048, 1536, 768)
)
STREAMING = dict(chunk=32, left=128)
THREE = dict(
    strides=(1, 2, 4), depths=(1, 2, 1), widths=(16, 32, 24), hidden=(24, 48, 32), heads=(2, 4, 2), kernels=(7, 5, 5)
)

MODEL = Zipformer
TAKES = ("audio",)
ROLES = ("backbone", "transcriber")
DEFAULT = "nano"
SIZES = {
    "toy": THREE | dict(rate=4000, mels=40, channels=(4, 8, 16), query=8, value=6, positions=16, num_classes=10, dropout=0.0, skip=0.0),
    "nano": dict(
        mels=40, channels=(8, 16, 32), strides=(1, 2, 4, 2), depths=(1, 1, 1, 1), widths=(64, 96, 128, 96), hidden=(128, 192, 256, 192),
        heads=(2, 4, 4, 4), kernels=(15, 15, 15, 15), query=16, value=16, positions=32, down=1,
    ),
    "small": SMALL,
    "medium": MEDIUM,
    "large": LARGE,
    "small_streaming": SMALL | STREAMING,
    "medium_streaming": MEDIUM | STREAMING,
    "large_streaming": LARGE | STREAMING,
}  # fmt: skip
WEIGHTS = {}

LAYER = [
    ("bypass.bypass_scale", "bypass.scale"), ("bypass_mid.bypass_scale", "middle.scale"), ("norm.bias", "norm.bias"),
    ("self_attn_weights.in_proj.{p}", "weights.project.{p}"), ("self_attn_weights.linear_pos.{p}", "weights.far.{p}"),
    ("feed_forward{n}.in_proj.{p}", "feed{n}.0.{p}"), ("feed_forward{n}.out_proj.{p}", "feed{n}.3.{p}"),
    ("self_attn{n}.in_proj.{p}", "look{n}.value.{p}"), ("self_attn{n}.out_proj.{p}", "look{n}.out.{p}"),
    ("nonlin_attention.in_proj.{p}", "average.up.{p}"), ("nonlin_attention.out_proj.{p}", "average.out.{p}"),
    ("conv_module{n}.in_proj.{p}", "conv{n}.up.{p}"), ("conv_module{n}.out_proj.{p}", "conv{n}.out.{p}"),
    ("conv_module{n}.depthwise_conv.chunkwise_conv_scale", "conv{n}.conv.edges"),
    ("conv_module{n}.depthwise_conv.causal_conv.{p}", "conv{n}.conv.causal.{p}"),
    ("conv_module{n}.depthwise_conv.chunkwise_conv.{p}", "conv{n}.conv.within.{p}"),
    ("conv_module{n}.depthwise_conv.{p}", "conv{n}.conv.{p}"),
]  # fmt: skip
STEM = [
    ("conv.0.{p}", "convs.0.{p}"), ("conv.4.{p}", "convs.2.{p}"), ("conv.7.{p}", "convs.4.{p}"), ("out.{p}", "out.{p}"),
    ("convnext.depthwise_conv.{p}", "depth.{p}"), ("convnext.pointwise_conv1.{p}", "up.{p}"),
    ("convnext.pointwise_conv2.{p}", "down.{p}"), ("out_norm.bias", "norm.bias"),
]  # fmt: skip


def _rules() -> list[Rule]:
    """icefall's layout: the encoder and its stem, of a stage at the full rate and of a slower one."""
    rules = [Rename(f"encoder_embed.{theirs}", f"stem.{ours}") for theirs, ours in STEM]
    rules += [View("encoder_embed.out_norm.log_scale", "stem.norm.log_scale", (1,), ())]
    slower, full = (
        ("encoders.{i}.encoder.layers.{j}", "stages.{i}.inner.blocks.{j}"),
        ("encoders.{i}.layers.{j}", "stages.{i}.blocks.{j}"),
    )
    for theirs, ours in (slower, full):
        rules += [Rename(f"encoder.{theirs}.{there}", f"{ours}.{here}") for there, here in LAYER]
        rules += [View(f"encoder.{theirs}.norm.log_scale", f"{ours}.norm.log_scale", (1,), ())]
        rules += [Drop(f"encoder.{theirs}.bypass_scale")]  # there, but never used
    rules += [Rename("encoder.encoders.{i}.downsample.bias", "stages.{i}.halve.share")]
    rules += [Rename("encoder.encoders.{i}.out_combiner.bypass_scale", "stages.{i}.bypass.scale")]
    rules += [Rename("encoder.downsample_output.bias", "halve.share")]
    rules += [Rename("ctc_output.1.{p}", "speak.{p}"), Rename("classifier.{p}", "head.{p}")]
    return rules


RULES = {"icefall": _rules()}
