"""Zipformer: A faster and better encoder for automatic speech recognition. Yao et al., 2023. arXiv:2310.11230.

New here: a stack of layers for each of several frame rates, down and up again as in a U-Net, each bypassed by what went
in (`FramePyramid`). A layer computes attention weights once and uses them three times, between three feed-forwards and
two convolutions. BiasNorm keeps something of a vector's length; SwooshL and SwooshR replace Swish. With `chunk` it also
reads sound as it comes, chunk by chunk (`begin`, `stream`).

Differs: features are `LogMel`'s (Hann window, Slaney's mel scale, log10, about -1 to 1); the published models were
trained on Kaldi's (Povey window, pre-emphasis, HTK's scale from 20 Hz to 400 Hz below half the rate, natural log), so
that their weights fit but hear otherwise. A sound gets four frames of silence before and after it, so that none is too
short. A row does not depend on the padding of its batch: what lies beyond its end is zero before the stem's
convolution, and its last frame is repeated where frames are averaged; in the official code both see the padding. A
causal model has one chunk and one left context for training and use. The transducer (its decoder and joiner, and the
pruned loss) is not here: frames are labelled under CTC. Left out, all of them of training: balancers, whiteners, the
penalty on scores, dropped frames, constant attention, masked features, and the schedules of dropout and layer dropping,
which stay at their last rates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Layer
from plait.core.init import torch_default
from plait.core.tokens import Tokens, mean, quiet, refuse
from plait.core.weights import Drop, Rename, View
from plait.errors import PlaitError
from plait.parts.mixers.chunk_conv import ChunkConv, Convolution, SameConv
from plait.parts.mixers.shared_weights import GatedAverage, SharedWeights, WeightedValues
from plait.parts.swoosh import BiasNorm, ScaledLinear, SharedDropout, SwooshL
from plait.parts.tokenizers.frame_stem import FrameStem
from plait.parts.tokenizers.spectrogram import SILENCE, LogMel
from plait.parts.towers.frame_pyramid import Bypass, FramePyramid

SIDE = 4  # frames of silence before and after a sound


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
    """One layer: Tokens (B, N, D) -> the same, with its `Past` for a memory. Of the context it reads far (L, P),
    the positions, and see, masks of the keys."""

    reads = ("far", "see")

    def __init__(
        self, width: int, hidden: int, weights: SharedWeights, value: int, convs: list[nn.Module],
        dropout: float, skip: float,
    ):  # fmt: skip
        super().__init__()
        self.weights = weights
        self.feed1, self.feed2, self.feed3 = (_feed(width, hidden * k // 4, dropout) for k in (3, 4, 5))
        self.average = GatedAverage(width, 3 * width // 4)
        self.look1, self.look2 = (WeightedValues(width, weights.heads, value) for _ in range(2))
        self.conv1, self.conv2 = (Convolution(width, conv) for conv in convs)
        self.middle, self.bypass, self.norm = Bypass(width), Bypass(width, skip), BiasNorm(width)

    def begin(self, x: Tensor, left: int) -> Past:
        """Of a stream x (B, ...) with `left` frames of context that has not begun: zeros."""
        value = self.look1.value.out_features
        widths = (self.weights.heads * self.weights.query, self.average.out.in_features, value, value)
        convs = (c.conv for c in (self.conv1, self.conv2))
        return Past(
            *(x.new_zeros(x.shape[0], left, w) for w in widths),
            *(x.new_zeros(x.shape[0], c.kernel // 2, c.edges.shape[1]) for c in convs),
        )

    def forward(self, t: Tokens) -> Tokens:
        refuse(t, "weight", "lengths", why="convolutions over time read every frame alike, in order")
        start, keep, past = quiet(t), t.keep, t.memory or Past()
        if not isinstance(past, Past):
            raise PlaitError(f"got a {type(past).__name__}, expected what `begin` gives: a stream is read in chunks")
        weights, key = self.weights(start, t.read("far"), t.read("see"), past.key)
        x = start + self.feed1(start)
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


class Zipformer(FramePyramid):
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
        self, *, rate=16000, mels=80, channels=(8, 32, 128), strides, depths, widths, hidden, heads, kernels,
        query=32, value=12, place=4, positions=48, down=2, chunk=None, left=None, labels=0, num_classes=0,
        dropout=0.1, skip=0.035,
    ):  # fmt: skip
        def conv(width: int, kernel: int, stride: int) -> nn.Module:
            return SameConv(width, kernel) if chunk is None else ChunkConv(width, kernel, chunk // stride)

        def layer(width: int, hidden: int, heads: int, kernel: int, stride: int) -> ZipformerBlock:
            convs = [conv(width, kernel, stride) for _ in range(2)]
            weights = SharedWeights(width, heads, query, place, positions)
            return ZipformerBlock(width, hidden, weights, value, convs, dropout, skip * stride**0.5)

        rows = zip(depths, zip(widths, hidden, heads, kernels, strides, strict=True), strict=True)
        stages = [[layer(*row) for _ in range(depth)] for depth, row in rows]
        super().__init__(
            FrameStem(mels, widths[0], channels, dropout), stages, widths, strides, positions, down, chunk, left
        )
        self.logmel = LogMel(rate, mels)
        self.speak = nn.Linear(self.width, labels) if labels else None
        self.head = nn.Linear(self.width, num_classes) if num_classes else nn.Identity()

    def features(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, S), keep (B, S) -> features (B, T, mels) with silence on both sides, keep (B, T)."""
        x, keep = self.logmel(x, keep)
        keep = None if keep is None else F.pad(keep, (2 * SIDE, 0), value=True)
        return F.pad(x, (0, 0, SIDE, SIDE), value=SILENCE), keep

    def frames(self, samples: int) -> int:
        """How many tokens a sound of so many samples becomes."""
        stem = (-(-samples // self.logmel.hop) + 1) // 2
        return -(-stem // self.down)

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
            raise PlaitError(
                "this Zipformer cannot transcribe: got labels=0, build it with labels=V, the blank of CTC counted in"
            )
        t = self.tokens(x, keep)
        logits = self.speak(t.x)
        if t.keep is None:
            return logits, torch.full(x.shape[:1], logits.shape[1], device=x.device)
        return logits.masked_fill(~t.keep[..., None], 0.0), t.keep.sum(1)


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
TOY = THREE | dict(rate=4000, mels=40, channels=(4, 8, 16), query=8, value=6)
FOUR = dict(strides=(1, 2, 4, 2), depths=(1, 1, 1, 1), heads=(2, 4, 4, 4), kernels=(15, 15, 15, 15))
NANO = FOUR | dict(mels=40, channels=(8, 16, 32), widths=(64, 96, 128, 96), hidden=(128, 192, 256, 192))
SIZES = {
    "toy": TOY | dict(positions=16, num_classes=10, dropout=0.0, skip=0.0),
    "nano": NANO | dict(query=16, value=16, positions=32, down=1),
    "small": SMALL,
    "medium": MEDIUM,
    "large": LARGE,
    "small_streaming": SMALL | STREAMING,
    "medium_streaming": MEDIUM | STREAMING,
    "large_streaming": LARGE | STREAMING,
}
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


STAGES = {  # at the full rate, and slower
    "encoder.encoders.{i}.layers.{j}": "stages.{i}.blocks.{j}",
    "encoder.encoders.{i}.encoder.layers.{j}": "stages.{i}.inner.blocks.{j}",
}
RULES = {
    "icefall": [
        *(Rename(f"encoder_embed.{theirs}", f"stem.{ours}") for theirs, ours in STEM),
        View("encoder_embed.out_norm.log_scale", "stem.norm.log_scale", (1,), ()),
        *(Rename(f"{a}.{theirs}", f"{b}.{ours}") for a, b in STAGES.items() for theirs, ours in LAYER),
        *(View(f"{a}.norm.log_scale", f"{b}.norm.log_scale", (1,), ()) for a, b in STAGES.items()),
        *(Drop(f"{a}.bypass_scale") for a in STAGES),  # there, but never used
        Rename("encoder.encoders.{i}.downsample.bias", "stages.{i}.halve.share"),
        Rename("encoder.encoders.{i}.out_combiner.bypass_scale", "stages.{i}.bypass.scale"),
        Rename("encoder.downsample_output.bias", "halve.share"),
        Rename("ctc_output.1.{p}", "speak.{p}"),
        Rename("classifier.{p}", "head.{p}"),
    ]
}
