"""Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet. Yuan et al., 2021. arXiv:2101.11986.

New here: tokens are made in steps. Overlapping windows of neighbouring tokens are joined (a soft split), a thin layer
mixes the joined tokens and makes them narrow again, and the result is a map to be split anew: three splits leave one
token for 16 x 16 pixels, each made of all that surrounds it. The transformer behind is deep and narrow. The thin layers
are a Performer (linear in the tokens, by fixed random features) or, in the `t_` sizes, ordinary attention.

Differs: dropout in the Performer is left out. Other picture sizes are read, rectangles too. The published weights of 7
to 24 and t_14 to t_24 were trained with attention scaled by the width instead of a head's width: those load as
"published", which scales their queries.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention, FeedForward, Pre, Stack
from plait.core.precision import wide
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Rename, Rule, under
from plait.parts.maps import only_map
from plait.parts.positions.sine import SequenceWaves
from plait.parts.tokenizers.patches import patch_grid
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_blocks

BareAttention = partial(Attention, qkv_bias=False)


class Performer(nn.Module):
    """Attention by positive random features (arXiv:2009.14794), one head, plus the values themselves: (B, N, C) -> (B,
    N, E).

    exp(q k) is the mean over fixed random w of exp(w q - q q / 2) exp(w k - k k / 2), so that keys and values are
    summed once for all queries. E/2 features stand for the mean.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.kqv, self.out = nn.Linear(channels, 3 * width), nn.Linear(width, width)
        self.register_buffer("features", torch.empty(width // 2, width))

    def reset(self) -> None:
        nn.init.orthogonal_(self.features)
        self.features.mul_(self.features.shape[0] ** 0.5)

    def kernel(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E/2) positive features, at least in float32."""
        x = wide(x)
        return (x @ self.features.mT.to(x.dtype) - x.square().sum(-1, keepdim=True) / 2).exp() * self.features.shape[
            0
        ] ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(x).chunk(3, -1)
        with torch.autocast(x.device.type, enabled=False):  # exponentials of sums of squares
            k, q = self.kernel(k), self.kernel(q)
            total = q @ k.sum(1)[..., None]  # (B, N, 1)
            y = q @ (k.mT @ wide(v)) / (total + 1e-8)
        return v + self.out(y.to(v.dtype))


class Values(nn.Module):
    """Attention of one head, plus the values themselves: (B, N, C) -> (B, N, E). Scores are scaled by C, as in the
    authors' code."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.qkv, self.out = nn.Linear(channels, 3 * width, bias=False), nn.Linear(width, width)
        self.scale, self.attend = channels**-0.5, Attend()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part[:, None] for part in self.qkv(x).chunk(3, -1))  # each (B, 1, N, E)
        return (v + self.out(self.attend.mix(q, k, v, scale=self.scale)))[:, 0]


class Thin(nn.Module):
    """A soft split and a layer that mixes the joined tokens: a map (B, C, H, W) -> (B, E, H/stride, W/stride)."""

    def __init__(self, channels: int, width: int, split: nn.Unfold, mix: type[nn.Module]):
        super().__init__()
        joined = channels * split.kernel_size**2
        self.split, self.norm, self.mix = split, nn.LayerNorm(joined), mix(joined, width)
        self.feed = Pre(nn.LayerNorm(width), FeedForward(width, width))

    def forward(self, x: Tensor) -> Tensor:
        h, w = (side // self.split.stride for side in x.shape[2:])
        x = self.split(x).mT  # (B, h * w, C * kernel^2)
        return only_map(self.feed(Tokens(self.mix(self.norm(x)), grid=(h, w))))


class TokensToToken(nn.Module):
    """Three soft splits: pictures (B, 3, H, W) -> Tokens (B, H/16 * W/16, D) of a grid. thin: the width between."""

    interleaved = False

    def __init__(self, width: int, thin: int, mix: type[nn.Module]):
        super().__init__()
        self.begin = partial(Thin, width=thin, split=nn.Unfold(7, padding=2, stride=4), mix=mix)
        self.for_channels(3)
        self.second = Thin(thin, thin, nn.Unfold(3, padding=1, stride=2), mix)
        self.split, self.proj = nn.Unfold(3, padding=1, stride=2), nn.Linear(9 * thin, width)

    def for_channels(self, channels: int) -> None:
        """The first split for pictures of so many channels."""
        self.first = self.begin(channels)

    def forward(self, x: Tensor) -> Tokens:
        grid = patch_grid(x, 16)
        return Tokens(self.proj(self.split(self.second(self.first(x))).mT), grid=grid)


class T2TViT(Backbone):
    """Pictures (B, 3, H, W), multiples of 16 -> logits (B, K). thin: width of the layers that make the tokens; exact:
    with ordinary attention there; hidden: the feed-forward's width."""

    multiple = 16
    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), thin=64, exact=False, width, depth, heads, hidden, num_classes=1000, drop_path=0.0
    ):
        super().__init__()
        self.width = width
        self.stem = TokensToToken(width, thin, Values if exact else Performer)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.positions = SequenceWaves((image[0] // 16, image[1] // 16), width, prefix=1)
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, hidden, mix=BareAttention, drop_path=drop_path))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first, before the last norm."""
        return self.stack(self.positions(prepend(self.cls, self.stem(x))))


LITE = dict(width=256, heads=4, hidden=512)
B14 = dict(width=384, depth=14, heads=6, hidden=1152)
B19 = dict(width=448, depth=19, heads=7, hidden=1344)
B24 = dict(width=512, depth=24, heads=8, hidden=1536)
EXACT = dict(exact=True)

MODEL = T2TViT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), thin=16, width=64, depth=2, heads=2, hidden=128, num_classes=10),
    "nano": dict(image=(64, 64), thin=32, width=128, depth=7, heads=4, hidden=256, drop_path=0.1),
    "7": LITE | dict(depth=7),
    "10": LITE | dict(depth=10),
    "12": LITE | dict(depth=12),
    "14": B14,
    "19": B19,
    "24": B24,
    "t_14": B14 | EXACT,
    "t_19": B19 | EXACT,
    "t_24": B24 | EXACT,
    "14_resnext": B14 | dict(heads=32),
    "14_wide": dict(width=768, depth=4, heads=12, hidden=2304),
}
URL = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main/"
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
EMA = dict(source="published", under="state_dict_ema")  # what the authors' evaluation reads
OWN = IMAGENET | dict(licence="bsd-3-clause-clear", crop_pct=0.9)
RELEASE = OWN | EMA
UNRELEASED = OWN | dict(source="official")
WEIGHTS = {
    "7": RELEASE | dict(url=URL + "71.7_T2T_ViT_7.pth.tar"),
    "10": RELEASE | dict(url=URL + "75.2_T2T_ViT_10.pth.tar"),
    "12": RELEASE | dict(url=URL + "76.5_T2T_ViT_12.pth.tar"),
    "14": RELEASE | dict(url=URL + "81.5_T2T_ViT_14.pth.tar"),
    "19": RELEASE | dict(url=URL + "81.9_T2T_ViT_19.pth.tar"),
    "24": RELEASE | dict(url=URL + "82.3_T2T_ViT_24.pth.tar"),
    "t_14": RELEASE | dict(url=URL + "81.7_T2T_ViTt_14.pth.tar"),
    "t_19": RELEASE | dict(url=URL + "82.4_T2T_ViTt_19.pth.tar"),
    "t_24": RELEASE | dict(url=URL + "82.6_T2T_ViTt_24.pth.tar"),
    "14_resnext": UNRELEASED | dict(github="yitu-opensource/T2T-ViT t2t_vit_14_resnext"),
    "14_wide": UNRELEASED | dict(github="yitu-opensource/T2T-ViT t2t_vit_14_wide"),
}


def _queries(power: float):
    """Scale the queries of a fused projection (3 D, D) from the width's square root to that of heads of 64, or back."""

    def change(tensors: list[Tensor]) -> list[Tensor]:
        q, k, v = tensors[0].chunk(3)
        return [torch.cat([q * (64 / q.shape[1]) ** power, k, v])]

    return change


EXACT_THIN = {
    "attn.qkv.weight": "mix.qkv.weight",
    "attn.proj.weight": "mix.out.weight",
    "attn.proj.bias": "mix.out.bias",
    "mlp.fc1.weight": "feed.f.up.weight",
    "mlp.fc1.bias": "feed.f.up.bias",
    "mlp.fc2.weight": "feed.f.down.weight",
    "mlp.fc2.bias": "feed.f.down.bias",
}
THIN = [
    Rule(tuple(EXACT_THIN), tuple(EXACT_THIN.values())),  # the exact one, known by its fused projection
    Rename("w", "mix.features"),
    Rename("kqv.{p}", "mix.kqv.{p}"),
    Rename("proj.{p}", "mix.out.{p}"),
    Rename("mlp.0.{p}", "feed.f.up.{p}"),
    Rename("mlp.2.{p}", "feed.f.down.{p}"),
    Rename("norm1.{p}", "norm.{p}"),
    Rename("norm2.{p}", "feed.norm.{p}"),
]
OFFICIAL = [
    Rename("cls_token", "cls"),
    Rename("pos_embed", "positions.table"),
    *under(THIN, "tokens_to_token.attention1.", "stem.first."),
    *under(THIN, "tokens_to_token.attention2.", "stem.second."),
    Rename("tokens_to_token.project.{p}", "stem.proj.{p}"),
    *timm_blocks(),
    Rename("norm.{p}", "norm.{p}"),
    Rename("head.{p}", "head.{p}"),
]
SCALED = Rule(("blocks.{i}.attn.qkv.weight",), ("stack.blocks.{i}.mix.f.qkv.weight",), _queries(0.5), _queries(-0.5))
RULES = {"official": OFFICIAL, "published": [SCALED, *OFFICIAL]}
