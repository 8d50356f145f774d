"""SpectFormer: Frequency and Attention is what you need in a Vision Transformer. Patro, Namboodiri, Agneeswaran, 2023.
arXiv:2304.06446.

New here: filters first, attention later. Early layers multiply the frequencies of the whole map by a learned complex
number for each frequency and channel; later ones attend. There is a plain form, of one resolution, and a hierarchy
(`h_`), whose first two stages filter.

Differs: other picture sizes are read, with filters and positions resampled. The heads of `b` are 64 wide as in the
other plain sizes, which is a guess: the 12 of the public code do not divide its width, so that it cannot be run. (Those
of `ti` stand in a comment there.) The logits of the hierarchy add half of the best answer of any place, in training as
well. Its training by labels of single places, on mixed pictures, is left out.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, Block, CrossAttention, DropPath, FeedForward, Pre, Stack, stage_rates
from plait.core.precision import wide
from plait.core.sizes import numbers
from plait.core.tokens import Tokens, mean, whole_grid
from plait.core.weights import Join, Rename, Rule, under
from plait.errors import PlaitError
from plait.parts.convs import ChannelsLast, ConvNorm, LayerNorm2d, Relu
from plait.parts.maps import OnTokens
from plait.parts.positions.learned import GridPositions
from plait.parts.positions.resample import resample
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.layouts import timm_blocks
from plait.parts.towers.pyramid import Pyramid
from plait.systems.vision.crossformer import CrossScale
from plait.systems.vision.smt import ConvFeed, NormTokens

Norm = partial(nn.LayerNorm, eps=1e-6)


class SpectralGate(nn.Module):
    """Each frequency of each channel times a learned complex number: Tokens of a grid (B, N, D) -> the same.

    grid: the (H, W) that the numbers are learned for; the filter (H, W / 2 + 1, D, 2) is resampled for others.
    """

    on_grid = True

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = tuple(grid)
        self.filter = nn.Parameter(torch.empty(grid[0], grid[1] // 2 + 1, width, 2))

    def reset(self) -> None:
        nn.init.normal_(self.filter, std=0.02)

    def laid(self, gain: Tensor, size: tuple[int, int]) -> Tensor:
        """(h, w, D, 2) -> (*size, D, 2)."""
        gain = resample(gain.permute(3, 2, 0, 1), size, "bilinear", align_corners=True)
        return gain.permute(2, 3, 1, 0).contiguous()

    def refit(self, key: str, tensor: Tensor) -> Tensor:
        """A published filter of another grid, as one of this grid."""
        return self.laid(tensor, (self.grid[0], self.grid[1] // 2 + 1))

    def forward(self, t: Tokens) -> Tokens:
        rows, columns = whole_grid(t).grid
        gain = self.filter
        if not numbers(rows, columns) or t.grid != self.grid:
            gain = self.laid(gain, (rows, columns // 2 + 1))
        waves = torch.fft.rfft2(wide(t.x).unflatten(1, t.grid), dim=(1, 2), norm="ortho")
        waves = waves * torch.view_as_complex(wide(gain).contiguous())
        return t.replace(x=torch.fft.irfft2(waves, s=t.grid, dim=(1, 2), norm="ortho").flatten(1, 2).to(t.x.dtype))


class ConvolvedFeed(ConvFeed):
    """A feed-forward step whose wide space passes through a depthwise convolution."""

    def forward(self, t: Tokens) -> Tokens:
        return t.replace(x=self.down(self.act(self.near(t.replace(x=self.up(t.x))).x)))


class Ask(nn.Module):
    """The mean token asks itself and all tokens, then is fed: Tokens (B, N, D) -> (B, D)."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm, self.cross = Norm(width), CrossAttention(width, heads)
        self.feed = Pre(Norm(width), FeedForward(width, hidden))

    def forward(self, t: Tokens) -> Tensor:
        first = mean(t)[:, None]
        seen = self.norm(torch.cat([first, t.x], 1))
        t = self.cross(Tokens(seen[:, :1]).reading(stream=Tokens(seen)))
        return self.feed(t.replace(x=first + t.x)).x[:, 0]


class SpectFormer(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K).

    image: the (H, W) that filters and positions are learned for. patch: the side of the plain form's patches; None: the
    hierarchy, which starts with convolutions of `thin` channels. spectral: how many of each stage's layers filter, the
    first ones, None: all; heads: of the others; ratios: feed-forward widths in widths.
    """

    classifier = ("head.", "aux.")
    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patch=None, thin=None, widths, depths, spectral, heads, ratios,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        if (patch is None) == (thin is None):
            raise PlaitError(f"got patch={patch} and thin={thin}, expected one: the plain form's or the hierarchy's")
        stages, grid, last = [], tuple(-(-side // (patch or 4)) for side in image), len(widths) - 1
        for s, (d, rates) in enumerate(zip(widths, stage_rates(drop_path, depths))):
            grid = tuple(-(-side // 2) for side in grid) if s else grid
            blocks = []
            for i, rate in enumerate(rates):
                filters = spectral[s] is None or i < spectral[s]
                mix = SpectralGate(d, grid) if filters else Attention(d, heads[s])
                feed = (FeedForward if patch else ConvolvedFeed)(d, ratios[s] * d)
                if patch and filters:  # one residual step around both
                    both = Pre(Norm(d), nn.Sequential(mix, NormTokens(d), feed), DropPath(rate))
                    blocks.append(Block(both, nn.Identity()))
                else:
                    blocks.append(pre_norm(d, mix, feed, norm=Norm, drop=rate))
            down = nn.Sequential(nn.Conv2d(widths[s - 1], d, 3, 2, 1), LayerNorm2d(d)) if s else nn.Identity()
            stack, norm = Stack(*blocks), (NormTokens(d),) if s < last else ()
            around = (GridPositions(grid, d), stack) if patch else (stack, *norm)
            stages.append(nn.Sequential(down, OnTokens(nn.Sequential(*around))))
        if patch:
            stem = (CrossScale(3, widths[0], (patch,)),)
        else:
            convs = (ConvNorm(c, thin, k, 2 if c == 3 else 1, act=Relu) for c, k in ((3, 7), (thin, 3), (thin, 3)))
            stem = *convs, nn.Conv2d(thin, widths[0], 3, 2, 1), LayerNorm2d(widths[0])
        super().__init__(nn.Sequential(ChannelsLast(), *stem), stages, Norm(d), d, num_classes)
        self.ask = None if patch else Ask(d, heads[last], ratios[last] * d)
        self.aux = nn.Linear(d, num_classes) if num_classes and not patch else None

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the mean of the normed tokens, or the norm of what the mean token has learnt by asking."""
        return mean(t.replace(x=self.norm(t.x))) if self.ask is None else self.norm(self.ask(t))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        t = self.tokens(x)
        y = self.head(self.pool(t))
        return y if self.aux is None else y + 0.5 * self.aux(self.norm(t.x)).amax(1)


PLAIN = dict(patch=16, spectral=(4,), ratios=(4,))
TREE = dict(thin=32, ratios=(8, 8, 4, 4))

MODEL = SpectFormer
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(image=(32, 32), thin=8, widths=(16, 32), depths=(1, 2), spectral=(None, 1))
NANO = dict(image=(64, 64), thin=16, widths=(32, 64, 128), depths=(2, 2, 3))
H_S = TREE | dict(widths=(64, 128, 320, 448), depths=(3, 4, 6, 3))
H_B = TREE | dict(thin=64, widths=(64, 128, 320, 512), depths=(3, 4, 12, 3))
H_L = TREE | dict(thin=64, widths=(96, 192, 384, 512), depths=(3, 6, 18, 3))
SIZES = {
    "toy": TOY | dict(heads=(None, 4), ratios=(2, 2), num_classes=10),
    "nano": NANO | dict(spectral=(None, None, 0), heads=(None, None, 4), ratios=(4, 4, 3)),
    "ti": PLAIN | dict(widths=(256,), depths=(12,), heads=(4,)),
    "xs": PLAIN | dict(widths=(384,), depths=(12,), heads=(6,)),
    "s": PLAIN | dict(widths=(384,), depths=(19,), heads=(6,), drop_path=0.15),
    "b": PLAIN | dict(widths=(512,), depths=(19,), heads=(8,), drop_path=0.25),
    "h_s": H_S | dict(spectral=(None, None, 0, 0), heads=(None, None, 10, 14), drop_path=0.1),
    "h_b": H_B | dict(spectral=(None, None, 0, 0), heads=(None, None, 10, 16), drop_path=0.1),
    "h_l": H_L | dict(spectral=(None, None, 0, 0), heads=(None, None, 12, 16), drop_path=0.3),
}

WEIGHTS = {
    "ti": dict(github="badripatro/SpectFormers vanilla spectformer-ti"),
    "xs": dict(github="badripatro/SpectFormers vanilla spectformer-xs"),
    "s": dict(github="badripatro/SpectFormers vanilla spectformer-s"),
    "b": dict(github="badripatro/SpectFormers vanilla spectformer-b"),
    "h_s": dict(github="badripatro/SpectFormers hierarchical spectformer_s"),
    "h_b": dict(github="badripatro/SpectFormers hierarchical spectformer_b"),
    "h_l": dict(github="badripatro/SpectFormers hierarchical spectformer_l"),
}

FILTERED = {"filter.complex_weight": "0.filter"}
FILTERED |= {
    f"{theirs}.{p}": f"{o}.{p}"
    for theirs, o in (("norm2", "1.norm"), ("mlp.fc1", "2.up"), ("mlp.fc2", "2.down"))
    for p in ("weight", "bias")
}
PLAIN_BLOCK = "stages.0.1.f.1.blocks.{i}"
LAYER = [
    Rename("{i}.attn.complex_weight", "{i}.mix.f.filter"),
    Join(["{i}.attn.q.{p}", "{i}.attn.kv.{p}"], "{i}.mix.f.qkv.{p}", (1, 2)),
    Rename("{i}.mlp.dwconv.dwconv.{p}", "{i}.feed.f.near.f.{p}"),
    *timm_blocks("{i}", "{i}"),
]
RULES = {
    "official": [
        Rule(
            tuple(f"blocks.{{i}}.{n}" for n in FILTERED), tuple(f"{PLAIN_BLOCK}.mix.f.{n}" for n in FILTERED.values())
        ),
        *timm_blocks("blocks.{i}", PLAIN_BLOCK),
        Rename("patch_embed.proj.{p}", "stem.1.eyes.0.{p}"),
        Rename("pos_embed", "stages.0.1.f.0.table"),
        *(Rename(f"patch_embed1.conv.{3 * n}.weight", f"stem.{n + 1}.conv.weight") for n in range(3)),
        *(Rename(f"patch_embed1.conv.{3 * n + 1}.{{p}}", f"stem.{n + 1}.norm.{{p}}") for n in range(3)),
        *(Rename(f"patch_embed1.{name}.{{p}}", f"stem.{n}.{{p}}") for n, name in ((4, "proj"), (5, "norm"))),
        # together: a plain model has the second only
        Rule(("post_network.0.norm1.{p}", "norm4.{p}"), ("ask.norm.{p}", "norm.{p}")),
        *(Rename(f"patch_embed{s + 1}.proj.{{p}}", f"stages.{s}.0.0.{{p}}") for s in range(1, 4)),
        *(Rename(f"patch_embed{s + 1}.norm.{{p}}", f"stages.{s}.0.1.{{p}}") for s in range(1, 4)),
        *(rule for s in range(4) for rule in under(LAYER, f"block{s + 1}.", f"stages.{s}.1.f.0.blocks.")),
        *(Rename(f"norm{s + 1}.{{p}}", f"stages.{s}.1.f.1.norm.{{p}}") for s in range(4)),
        Rename("post_network.0.attn.proj.{p}", "ask.cross.out.{p}"),
        Rename("post_network.0.attn.{q}.{p}", "ask.cross.{q}.{p}"),
        Rename("post_network.0.norm2.{p}", "ask.feed.norm.{p}"),
        Rename("post_network.0.mlp.fc1.{p}", "ask.feed.f.up.{p}"),
        Rename("post_network.0.mlp.fc2.{p}", "ask.feed.f.down.{p}"),
        Rename("norm.{p}", "norm.{p}"),
        Rename("aux_head.{p}", "aux.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
