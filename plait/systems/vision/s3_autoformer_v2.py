"""Searching the Search Space of Vision Transformer (S3, AutoFormerV2). Chen, Wu, Ni, Peng, Liu, Fu, Chao, Ling, 2021.
arXiv:2111.14725.

New here: not only the network is searched but the space that it is searched in. Of every stage the depth and the width,
of every layer the heads, the feed-forward's width and the window may differ; smaller nets are trained as leading slices
of the largest, and a dimension whose samples err is moved before the search goes on. What comes out are Swin's layers
with windows that cover a whole late stage.

Differs: grids are filled up with zeros instead of being refused; the search itself is left out, what it slices
(`subnet`) is here.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from plait.core.block import Block, FeedForward, Stack, stage_rates
from plait.core.weights import Drop, Rename
from plait.errors import PlaitError
from plait.parts.maps import OnTokens
from plait.parts.mixers.windows import WindowAttention
from plait.parts.tokenizers.patches import PatchMap
from plait.parts.towers.encoder import pre_norm
from plait.parts.towers.layouts import timm_blocks
from plait.parts.towers.pyramid import Pyramid
from plait.systems.vision.swin import Merge, ShiftedWindowAttention

HEAD = 32  # the width of every head, so that heads can be added and taken away without changing the others
PIECES = {r".*\.qkv\..*": (3, 1), r"stages\.\d+\.0\.norm\..*": (4,), r"stages\.\d+\.0\.proj\..*": (1, 4)}


class S3(Pyramid):
    """Pictures (B, 3, H, W) of any size -> logits (B, K).

    widths, depths: of each stage. heads, windows, ratios: for each stage one for all of its layers, or a tuple with one
    for each. A window is given by its side, the ratio is the feed-forward's width in widths.
    """

    def __init__(
        self, *, patch=4, widths, depths, heads, windows, ratios=(4, 4, 4, 4), num_classes=1000, drop_path=0.0
    ):
        stages = []
        for s, (width, rates) in enumerate(zip(widths, stage_rates(drop_path, depths))):
            plans = zip(*(each(choice[s], len(rates)) for choice in (heads, windows, ratios)), rates)
            stack = Stack(*(layer(width, *plan, shifted=i % 2 == 1) for i, plan in enumerate(plans)))
            stages.append(nn.Sequential(merge(widths[s - 1], width) if s else nn.Identity(), OnTokens(stack)))
        super().__init__(PatchMap(widths[0], patch), stages, nn.LayerNorm(width), width, num_classes)


def each(choice: float | tuple, depth: int) -> tuple:
    """A stage's choice, layer by layer."""
    layers = tuple(choice) if isinstance(choice, (tuple, list)) else (choice,) * depth
    if len(layers) != depth:
        raise PlaitError(f"got {len(layers)} choices for a stage of {depth} layers: give one for each, or one for all")
    return layers


def layer(width: int, heads: int, window: int, ratio: float, drop: float, *, shifted: bool) -> Block:
    """One layer of Swin with choices of its own; queries, keys and values are as wide as the heads are many."""
    mix = (ShiftedWindowAttention if shifted else WindowAttention)(HEAD * heads, heads, (window, window))
    mix.qkv, mix.out = nn.Linear(width, 3 * HEAD * heads), nn.Linear(HEAD * heads, width)
    return pre_norm(width, mix, FeedForward(width, int(ratio * width)), drop=drop)


def merge(width: int, out: int) -> Merge:
    """Four neighbours become one: (B, C, H, W) -> (B, out, H / 2, W / 2), rounded up."""
    step = Merge(width)
    step.proj = nn.Linear(4 * width, out, bias=False)
    return step


def subnet(supernet: nn.Module, small: nn.Module, pieces: dict[str, tuple[int, ...]] = PIECES) -> dict[str, Tensor]:
    """The parameters of `small` as leading slices of those of `supernet`, built alike but nowhere smaller, with the
    same windows. Raises ValueError where `small` is larger.

    `torch.func.functional_call(small, subnet(supernet, small), pictures)` runs the slice; its gradients reach the
    supernet, all of whose subnets so share their weights. `small` may be on the meta device. pieces: for keys that
    match a pattern, of how many equal pieces each dimension consists: the slice leads in every one.
    """
    found, large = {}, dict(supernet.named_parameters())
    for name, wanted in small.named_parameters():
        x = large.get(name)
        fits = x is not None and all(a <= b for a, b in zip(wanted.shape, x.shape))
        if not fits or (name.endswith("bias.table") and len(x) != len(wanted)):
            raise PlaitError(
                f"{name} {tuple(wanted.shape)} is no slice of the supernet: "
                "expected a net nowhere larger, with its windows"
            )
        counts = next((c for pattern, c in pieces.items() if re.fullmatch(pattern, name)), ())
        for dim, size in enumerate(wanted.shape):
            count = counts[dim] if dim < len(counts) else 1
            x = x.unflatten(dim, (count, -1)).narrow(dim + 1, 0, size // count).flatten(dim, dim + 1)
        found[name] = x
    return found


S3_NET = dict(widths=(96, 192, 384, 768), heads=(3, 6, 12, 24))

MODEL = S3
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
TOY = dict(patch=2, widths=(32, 64), depths=(2, 2), heads=(1, 2))
SIZES = {
    "toy": TOY | dict(windows=(4, (8, 4)), ratios=((2, 1.5), 1), num_classes=10),
    "nano": dict(patch=2, widths=(32, 64, 128), depths=(2, 2, 4), heads=(1, 2, 4), windows=(4, 4, 8), drop_path=0.1),
    "tiny": S3_NET | dict(depths=(2, 2, 6, 2), windows=(7, 7, 14, 7), drop_path=0.1),
    "small": S3_NET | dict(depths=(2, 2, 18, 2), windows=(14, 14, 14, 7), drop_path=0.1),
    "base": S3_NET | dict(depths=(2, 2, 30, 2), windows=(7, 7, 14, 7), drop_path=0.1),
}

OFFICIAL = dict(source="official", licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "tiny": OFFICIAL | dict(github="microsoft/Cream AutoFormerV2 S3-T"),
    "small": OFFICIAL | dict(github="microsoft/Cream AutoFormerV2 S3-S"),
    "base": OFFICIAL | dict(github="microsoft/Cream AutoFormerV2 S3-B"),
}

THEIRS, OURS = "layers.{s}.blocks.{i}", "stages.{s}.1.f.blocks.{i}"
RULES = {
    "official": [
        Rename("patch_embed.{p}.{q}", "stem.{p}.{q}"),
        *(Rename(f"layers.{s}.downsample.norm.{{p}}", f"stages.{s + 1}.0.norm.{{p}}") for s in range(3)),
        *(Rename(f"layers.{s}.downsample.reduction.{{p}}", f"stages.{s + 1}.0.proj.{{p}}") for s in range(3)),
        Drop(f"{THEIRS}.attn_mask"),
        Drop(f"{THEIRS}.attn.relative_position_index"),
        Rename(f"{THEIRS}.attn.relative_position_bias_table", f"{OURS}.mix.f.bias.table"),
        *timm_blocks(THEIRS, OURS),
        Rename("norm.{p}", "norm.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
