"""Sequencer: Deep LSTM for Image Classification. Tatsunami, Taki, 2022. arXiv:2205.01972.

New here: LSTMs in attention's place. In each layer one bidirectional LSTM reads every column, another every row, and a
linear layer joins what both say, so that a token hears of its column and its row, and after two layers of all. Any
picture size is read as trained.

Differs: nothing but the rates of stochastic depth, which grow with depth.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import FeedForward, Stack, stage_rates
from plait.core.schemes import FAINT, ZERO, Paper, lecun, xavier
from plait.core.tokens import Tokens, whole_grid
from plait.core.weights import Rename
from plait.parts.maps import OnTokens
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.pyramid import Pyramid

Norm = partial(nn.LayerNorm, eps=1e-6)


NAMES = [f"{kind}_{side}_l0{way}" for way in ("", "_reverse") for kind in ("weight", "bias") for side in ("ih", "hh")]


class LSTM(nn.Module):
    """A bidirectional LSTM, (B, N, D) -> (B, N, 2 hidden). Its parameters have the names of torch's module, which does
    not compile whole, where its function does."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.hidden = hidden
        for name in NAMES:
            shape = (4 * hidden, width if "ih" in name else hidden)
            self.register_parameter(name, nn.Parameter(torch.empty(shape if "weight" in name else shape[:1])))

    def reset(self) -> None:
        for p in self.parameters():
            nn.init.uniform_(p, -(self.hidden**-0.5), self.hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        weights = [getattr(self, name) for name in NAMES]
        start = x.new_zeros(2, x.shape[0], self.hidden)
        return torch.lstm(x, (start, start), weights, True, 1, 0.0, self.training, True, True)[0]


class BiLSTM2D(nn.Module):
    """The mixer: Tokens (B, N, D) of a grid -> Tokens (B, N, D). hidden: each LSTM's width in each direction."""

    on_grid = True

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.down, self.across = LSTM(width, hidden), LSTM(width, hidden)
        self.out = nn.Linear(4 * hidden, width)

    def forward(self, t: Tokens) -> Tokens:
        x, (h, w) = whole_grid(t).x.unflatten(1, t.grid), t.grid  # (B, h, w, D)
        down = self.down(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (-1, w)).transpose(1, 2)
        across = self.across(x.flatten(0, 1)).unflatten(0, (-1, h))
        return t.replace(x=self.out(torch.cat([down, across], -1)).flatten(1, 2))


class Sequencer2D(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K).

    Of each stage, patches: how many pixels or tokens a side become one; widths; depths; hiddens: its LSTMs' width.
    """

    attends = False
    multiple = None  # any that divides by the patches, but an exported program keeps its own: lengths are unrolled

    def __init__(
        self, *, patches=(7, 2, 1, 1), widths=(192, 384, 384, 384), depths, hiddens=(48, 96, 96, 96),
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        stages = []
        for i, (d, hidden, patch, rates) in enumerate(zip(widths, hiddens, patches, stage_rates(drop_path, depths))):
            down = nn.Conv2d(widths[i - 1], d, patch, patch) if i else nn.Identity()
            blocks = (pre_norm(d, BiLSTM2D(d, hidden), FeedForward(d, 3 * d), norm=Norm, drop=r) for r in rates)
            stages.append(nn.Sequential(down, OnTokens(Stack(*blocks))))
        stem = nn.Conv2d(3, widths[0], patches[0], patches[0])
        super().__init__(stem, stages, Norm(widths[-1]), widths[-1], num_classes)


PAPER = Paper(
    (
        ("head.*", ZERO),
        ("*.feed.f.*.bias", FAINT),
        ("Linear.weight", xavier),
        ("Linear.bias", ZERO),
        ("Conv2d.weight", lecun),
        ("Conv2d.bias", ZERO),
    ),  # without its rates of stochastic depth, 0.1 to 0.4, which are the same in all layers there
)

MODEL = Sequencer2D
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(patches=(4, 2, 1, 1), widths=(16, 24, 24, 24), depths=(1, 1, 1, 1))
NANO = dict(patches=(4, 2, 1, 1), widths=(64, 128, 128, 128), depths=(2, 2, 4, 2))
SIZES = {
    "toy": TOY | dict(hiddens=(4, 6, 6, 6), num_classes=10),
    "nano": NANO | dict(hiddens=(16, 32, 32, 32), drop_path=0.1),
    "s": dict(depths=(4, 3, 8, 3)),
    "m": dict(depths=(4, 3, 14, 3)),
    "l": dict(depths=(8, 8, 16, 4)),
}
CROP = dict(image=(224, 224), crop_pct=0.875)
TIMM = CROP | dict(licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "s": TIMM | dict(hub="timm/sequencer2d_s.in1k"),
    "m": TIMM | dict(hub="timm/sequencer2d_m.in1k"),
    "l": TIMM | dict(hub="timm/sequencer2d_l.in1k"),
}
RULES = {
    "timm": [
        Rename("stem.proj.{p}", "stem.{p}"),
        Rename("stages.{i}.downsample.down.{p}", "stages.{i}.0.{p}"),
        *(
            Rename(f"stages.{{i}}.blocks.{{j}}.{theirs}.{{p}}", f"stages.{{i}}.1.f.blocks.{{j}}.{ours}.{{p}}")
            for theirs, ours in {
                "norm1": "mix.norm",
                "rnn_tokens.rnn_v": "mix.f.down",
                "rnn_tokens.rnn_h": "mix.f.across",
                "rnn_tokens.fc": "mix.f.out",
                "norm2": "feed.norm",
                "mlp_channels.fc1": "feed.f.up",
                "mlp_channels.fc2": "feed.f.down",
            }.items()
        ),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
    ]
}
