"""Vision-RWKV: Efficient and Scalable Visual Perception with RWKV-Like Architectures. Duan et al., 2024.
arXiv:2403.02308.

New here: attention without queries. Each channel sums the values of all tokens by exp(key) and by a learned decay with
the distance along the sequence, from both sides (Bi-WKV), which running sums give in linear time. Before every layer's
projections a quarter of the channels comes from each neighbouring patch (Q-Shift). The decay is relative to the number
of tokens, so that larger pictures are read alike.

Differs: 1e-6, which the official kernel adds to the denominator, is left out. The published `large` was tuned at 384 x
384 with positions for 192 x 192.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Block, DropPath, LayerScale, Pre, Stack, drop_rates
from plait.core.tokens import Tokens, whole_grid
from plait.core.weights import Rename, Rule
from plait.parts.mixers.wkv import bi_wkv
from plait.parts.positions.learned import GridPositions
from plait.parts.positions.resample import resample
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone


def q_shift(t: Tokens) -> Tensor:
    """(B, N, C): a quarter of the channels from each token's left, right, upper and lower neighbour, zeros past the
    edge."""
    x, q = whole_grid(t).x.unflatten(1, t.grid), t.x.shape[2] // 4  # (B, h, w, C)
    shifted = [
        F.pad(x[:, :, :-1, :q], (0, 0, 1, 0)),
        F.pad(x[:, :, 1:, q : 2 * q], (0, 0, 0, 1)),
        F.pad(x[:, :-1, :, 2 * q : 3 * q], (0, 0, 0, 0, 1, 0)),
        F.pad(x[:, 1:, :, 3 * q : 4 * q], (0, 0, 0, 0, 0, 1)),
        x[..., 4 * q :],
    ]
    return torch.cat(shifted, -1).flatten(1, 2)


class Places(GridPositions):
    """Learned positions, resampled by torch's plain bicubic kernel, which is not the one with antialiasing even where
    pictures grow."""

    def laid(self, places: Tensor, grid: tuple[int, ...], onto: tuple[int, ...]) -> Tensor:
        return resample(places.transpose(1, 2).unflatten(2, grid), onto).flatten(2).transpose(1, 2)


class Blend(nn.Module):
    """x where a channel's learned share is 1, its neighbour where it is 0: two (B, N, C) -> (B, N, C). start: the
    shares' exponent and what is added, for channels that run from 0 to 1."""

    def __init__(self, width: int, power: float, added: float = 0.0):
        super().__init__()
        self.power, self.added, self.share = power, added, nn.Parameter(torch.empty(1, 1, width))

    def reset(self) -> None:
        self.share.copy_((torch.arange(self.share.shape[2]) / self.share.shape[2]) ** self.power + self.added)

    def forward(self, x: Tensor, neighbour: Tensor) -> Tensor:
        return torch.lerp(neighbour, x, self.share.to(x.dtype))


class SpatialMix(nn.Module):
    """The mixer: Tokens of a grid (B, N, D) -> the same. depth: how far up this layer is, from 0 to 1; rest: 1 at the
    first layer, falling to nearly 0. norm: also norm what was mixed."""

    on_grid = True

    def __init__(self, width: int, depth: float, rest: float, *, norm: bool):
        super().__init__()
        self.depth = depth
        self.blend_k, self.blend_v = Blend(width, rest), Blend(width, rest, 0.3 * depth)
        self.blend_r = Blend(width, 0.5 * rest)
        self.k, self.v, self.r, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay, self.first = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def reset(self) -> None:
        channel = torch.arange(len(self.decay))
        self.decay.copy_(8 * (channel / (len(self.decay) - 1)) ** (0.7 + 1.3 * self.depth) - 5)
        self.first.copy_(torch.tensor(0.3).log() + 0.5 * ((channel + 1) % 3 - 1))

    def forward(self, t: Tokens) -> Tokens:
        n, near = t.x.shape[1], q_shift(t)
        k, v, r = self.k(self.blend_k(t.x, near)), self.v(self.blend_v(t.x, near)), self.r(self.blend_r(t.x, near))
        y = self.norm(bi_wkv(self.decay / n, self.first / n, k, v).to(r.dtype))
        return t.replace(x=self.out(y * r.sigmoid()))


class ChannelMix(nn.Module):
    """The feed-forward, squared ReLU with a gate: Tokens of a grid (B, N, D) -> the same."""

    on_grid = True

    def __init__(self, width: int, rest: float, *, norm: bool):
        super().__init__()
        self.blend_k, self.blend_r = Blend(width, rest), Blend(width, rest)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.r = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(4 * width) if norm else nn.Identity()

    def forward(self, t: Tokens) -> Tokens:
        near = q_shift(t)
        hidden = self.norm(self.up(self.blend_k(t.x, near)).relu().square())
        return t.replace(x=self.down(hidden) * self.r(self.blend_r(t.x, near)).sigmoid())


class VisionRWKV(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). `image` is the (H, W) that positions are learned for; other multiples of
    the patch are resampled. scale: norms stand behind the branches, with a layer scale that starts there; None: before
    them, without. norm: also norm what was mixed. hidden: the head's hidden width, 0 for a linear one."""

    attends = False
    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patch=16, width, depth=12, scale=None, norm=False, hidden=0,
        num_classes=1000, drop_path=0.0,
    ):  # fmt: skip
        super().__init__()
        self.width, self.multiple = width, patch
        self.stem = PatchTokens(width, patch)
        self.positions = Places((image[0] // patch, image[1] // patch), width)
        self.first = nn.LayerNorm(width)

        def step(f: nn.Module, drop: float) -> Pre:
            if scale is None:
                return Pre(nn.LayerNorm(width), f, DropPath(drop))
            behind = nn.LayerNorm(width), LayerScale(width, scale), DropPath(drop)
            return Pre(nn.Identity(), f, nn.Sequential(*behind))

        def layer(i: int, drop: float) -> Block:
            far, rest = i / max(depth - 1, 1), 1 - i / depth
            mix, feed = SpatialMix(width, far, rest, norm=norm), ChannelMix(width, rest, norm=norm)
            return Block(step(mix, drop), step(feed, drop))

        self.stack = Stack(*(layer(i, drop) for i, drop in enumerate(drop_rates(drop_path, depth))))
        self.norm = nn.LayerNorm(width)
        classes = nn.Linear(hidden or width, num_classes) if num_classes else nn.Identity()
        wide = num_classes and hidden
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), classes) if wide else classes

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) with their grid, before the last norm."""
        t = self.positions(self.stem(x))
        return self.stack(t.replace(x=self.first(t.x)))


MODEL = VisionRWKV
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, scale=0.5, norm=True, hidden=16, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=128, depth=6, scale=1.0, drop_path=0.1),
    "tiny": dict(width=192),
    "small": dict(width=384, scale=1.0, drop_path=0.3),
    "base": dict(width=768, scale=1e-5, drop_path=0.5),
    "large": dict(image=(192, 192), width=1024, depth=24, scale=1e-5, norm=True, hidden=3072, drop_path=0.1),
}
URL = "https://huggingface.co/OpenGVLab/Vision-RWKV/resolve/main/"
OFFICIAL = dict(source="official", licence="apache-2.0", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "tiny": OFFICIAL | dict(url=URL + "vrwkv_t_in1k_224.pth"),
    "small": OFFICIAL | dict(url=URL + "vrwkv_s_in1k_224.pth"),
    "base": OFFICIAL | dict(url=URL + "vrwkv_b_in1k_224.pth"),
    "large": OFFICIAL | dict(url=URL + "vrwkv_l_22kto1k_384.pth"),
}
LAYER, OURS = "backbone.layers.{i}", "stack.blocks.{i}"
NAMES = {
    "att.spatial_mix_k": "mix.f.blend_k.share",
    "att.spatial_mix_v": "mix.f.blend_v.share",
    "att.spatial_mix_r": "mix.f.blend_r.share",
    "att.spatial_decay": "mix.f.decay",
    "att.spatial_first": "mix.f.first",
    "att.key.weight": "mix.f.k.weight",
    "att.value.weight": "mix.f.v.weight",
    "att.receptance.weight": "mix.f.r.weight",
    "att.output.weight": "mix.f.out.weight",
    "att.key_norm.{p}": "mix.f.norm.{p}",
    "ffn.spatial_mix_k": "feed.f.blend_k.share",
    "ffn.spatial_mix_r": "feed.f.blend_r.share",
    "ffn.key.weight": "feed.f.up.weight",
    "ffn.value.weight": "feed.f.down.weight",
    "ffn.receptance.weight": "feed.f.r.weight",
    "ffn.key_norm.{p}": "feed.f.norm.{p}",
}
BEHIND = ("after.1.gamma", "after.0.weight", "after.0.bias")  # a norm behind a branch, where there is a scale too
RULES = {
    "official": [
        Rename("backbone.patch_embed.projection.{p}", "stem.proj.{p}"),
        Rename("backbone.pos_embed", "positions.table"),
        Rename("backbone.layers.0.ln0.{p}", "first.{p}"),
        *(Rename(f"{LAYER}.{theirs}", f"{OURS}.{ours}") for theirs, ours in NAMES.items()),
        *(
            rule
            for n, step in ((1, "mix"), (2, "feed"))
            for rule in (
                Rule(
                    tuple(f"{LAYER}.{name}" for name in (f"gamma{n}", f"ln{n}.weight", f"ln{n}.bias")),
                    tuple(f"{OURS}.{step}.{name}" for name in BEHIND),
                ),
                Rename(f"{LAYER}.ln{n}.{{p}}", f"{OURS}.{step}.norm.{{p}}"),
            )
        ),
        Rename("backbone.ln1.{p}", "norm.{p}"),
        Rename("head.fc.{p}", "head.{p}"),
        Rename("head.{k}.{p}", "head.{k}.{p}"),
    ]
}
