"""Escaping the Big Data Paradigm with Compact Transformers. Hassani et al., 2021. arXiv:2104.05704.

New here: a transformer small enough to learn from a few thousand pictures. One or two convolutions with pooling make
the tokens in place of patches, so that neighbours are known to be neighbours; no class token, but a learned weighing of
all tokens after the last layer (sequence pooling); positions may be learned or fixed. The sizes `cvt` and `lite` are
what the paper compares with: patches with sequence pooling, and patches with a class token.

Differs: no dropout on attention weights. Other picture sizes than `image` are read. The sizes' names are layers_kernel
x convolutions_picture; those in `sine` have fixed positions, though the authors' builders of these names, by an
oversight, make learned ones of all but `lite`. The form for texts is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.block import Attention, Block, DropPath, FeedForward, Post, Pre, Stack, drop_rates
from plait.core.tokens import Tokens, prepend, refuse
from plait.core.weights import Rename
from plait.parts.maps import to_tokens
from plait.parts.positions.learned import GridPositions
from plait.parts.positions.sine import SequenceWaves
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.systems.vision.crate import Normed


class ConvTokens(nn.Module):
    """(B, 3, H, W) -> Tokens of a grid: `convs` times a convolution (64 channels between), ReLU, maximum of 3 x 3."""

    def __init__(self, width: int, kernel: int, convs: int):
        super().__init__()
        self.kernel, self.stride, self.pad = kernel, max(1, kernel // 2 - 1), max(1, kernel // 2)
        channels = [3, *[64] * (convs - 1), width]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel, self.stride, self.pad, bias=False) for a, b in zip(channels, channels[1:])
        )
        self.act, self.most = nn.ReLU(), nn.MaxPool2d(3, 2, 1)

    def side(self, pixels: int) -> int:
        """How many tokens a side of this many pixels becomes."""
        for _ in self.convs:  # what the convolution leaves, halved and rounded up
            pixels = ((pixels + 2 * self.pad - self.kernel) // self.stride + 2) // 2
        return pixels

    def forward(self, x: Tensor) -> Tokens:
        for conv in self.convs:
            x = self.most(self.act(conv(x)))
        return to_tokens(x)


class SequencePool(nn.Module):
    """Tokens (B, N, D) -> (B, D): their mean, weighed by a softmax over a learned score of each."""

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, t: Tokens) -> Tensor:
        refuse(t, "keep", "lengths", why="a picture has no padding")
        score = self.score(t.x)  # (B, N, 1)
        if t.weight is not None:
            score = score + t.weight.clamp(min=1e-6).log()[..., None]
        return (score.softmax(1).mT @ t.x)[:, 0]


def layer(width: int, heads: int, hidden: int, drop: float) -> Block:
    """norm(x + attention(norm(x))), then a feed-forward step without norms."""
    mix = Normed(nn.LayerNorm(width), Attention(width, heads, qkv_bias=False))
    feed = Pre(nn.Identity(), FeedForward(width, hidden), DropPath(drop))
    return Block(Post(nn.LayerNorm(width), mix, DropPath(drop)), feed)


class CCT(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K). learned: positions are learned for `image`, else fixed. patch: the side
    of patches in the place of convolutions. cls: a class token answers in the place of sequence pooling."""

    multiple = 1
    fits = ("image",)

    def __init__(
        self, *, image=(32, 32), kernel=3, convs=1, width=256, depth, heads=4, hidden=512, learned=True,
        patch=None, cls=False, num_classes=10, drop_path=0.1,
    ):  # fmt: skip
        super().__init__()
        self.width, self.multiple = width, patch or 1
        self.stem = PatchTokens(width, patch) if patch else ConvTokens(width, kernel, convs)
        side = (lambda pixels: pixels // patch) if patch else self.stem.side
        grid, first = (side(image[0]), side(image[1])), int(cls)
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if cls else None
        self.positions = (GridPositions if learned else SequenceWaves)(grid, width, prefix=first)
        self.stack = Stack(*(layer(width, heads, hidden, rate) for rate in drop_rates(drop_path, depth)))
        self.norm, self.weigh = nn.LayerNorm(width), None if cls else SequencePool(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def reset(self) -> None:
        if self.cls is not None:
            nn.init.trunc_normal_(self.cls, std=0.02)

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, N, D) of the grid, a class token first where there is one, before the last
        norm."""
        t = self.stem(x)
        return self.stack(self.positions(t if self.cls is None else prepend(self.cls, t)))

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the normed tokens, weighed, or the class token, normed."""
        return super().pool(t) if self.weigh is None else self.weigh(t.replace(x=self.norm(t.x)))


TWO = dict(depth=2, width=128, heads=2, hidden=128)
FOUR = TWO | dict(depth=4)
SIX = dict(depth=6)
SEVEN = dict(depth=7)
FOURTEEN = dict(depth=14, width=384, heads=6, hidden=1152, num_classes=1000)
C3X2 = dict(convs=2)
C7X2 = dict(kernel=7, convs=2, image=(224, 224))
FLOWERS = dict(num_classes=102)
SINE = dict(learned=False)
CVT = dict(patch=4)
LITE = CVT | dict(cls=True)

MODEL = CCT
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(convs=2, width=32, depth=2, heads=2, hidden=64, num_classes=10),
    "nano": dict(image=(64, 64), convs=2, width=128, depth=5, heads=4, hidden=384, num_classes=1000),
    "2_3x2_32": TWO | C3X2,
    "2_3x2_32_sine": TWO | C3X2 | SINE,
    "4_3x2_32": FOUR | C3X2,
    "4_3x2_32_sine": FOUR | C3X2 | SINE,
    "6_3x1_32": SIX,
    "6_3x1_32_sine": SIX | SINE,
    "6_3x2_32": SIX | C3X2,
    "6_3x2_32_sine": SIX | C3X2 | SINE,
    "7_3x1_32": SEVEN,
    "7_3x1_32_sine": SEVEN | SINE,
    "7_3x1_32_c100": SEVEN | dict(num_classes=100),
    "7_3x1_32_sine_c100": SEVEN | SINE | dict(num_classes=100),
    "7_3x2_32": SEVEN | C3X2,
    "7_3x2_32_sine": SEVEN | C3X2 | SINE,
    "7_7x2_224": SEVEN | C7X2 | FLOWERS,
    "7_7x2_224_sine": SEVEN | C7X2 | FLOWERS | SINE,
    "14_7x2_224": C7X2 | FOURTEEN,
    "14_7x2_384": C7X2 | FOURTEEN | dict(image=(384, 384)),
    "14_7x2_384_fl": C7X2 | FOURTEEN | FLOWERS | dict(image=(384, 384)),
    "cvt_2_4_32": TWO | CVT,
    "cvt_2_4_32_sine": TWO | CVT | SINE,
    "cvt_4_4_32": FOUR | CVT,
    "cvt_4_4_32_sine": FOUR | CVT | SINE,
    "cvt_6_4_32": SIX | CVT,
    "cvt_6_4_32_sine": SIX | CVT | SINE,
    "cvt_7_4_32": SEVEN | CVT,
    "cvt_7_4_32_sine": SEVEN | CVT | SINE,
    "lite_2_4_32": TWO | LITE,
    "lite_2_4_32_sine": TWO | LITE | SINE,
    "lite_4_4_32": FOUR | LITE,
    "lite_4_4_32_sine": FOUR | LITE | SINE,
    "lite_6_4_32": SIX | LITE,
    "lite_6_4_32_sine": SIX | LITE | SINE,
    "lite_7_4_32": SEVEN | LITE,
    "lite_7_4_32_sine": SEVEN | LITE | SINE,
}
URL = "https://shi-labs.com/projects/cct/checkpoints/"
CIFAR = dict(source="official", licence="apache-2.0", mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
IMAGENET = CIFAR | dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "2_3x2_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_2_3x2_32"),
    "2_3x2_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_2_3x2_32_sine"),
    "4_3x2_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_4_3x2_32"),
    "4_3x2_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_4_3x2_32_sine"),
    "6_3x1_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_6_3x1_32"),
    "6_3x1_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_6_3x1_32_sine"),
    "6_3x2_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_6_3x2_32"),
    "6_3x2_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_6_3x2_32_sine"),
    "7_3x1_32": CIFAR | dict(url=URL + "pretrained/cct_7_3x1_32_cifar10_300epochs.pth"),
    "7_3x1_32_sine": CIFAR | dict(url=URL + "pretrained/cct_7_3x1_32_sine_cifar10_5000epochs.pth"),
    "7_3x1_32_c100": CIFAR | dict(url=URL + "pretrained/cct_7_3x1_32_cifar100_300epochs.pth"),
    "7_3x1_32_sine_c100": CIFAR | dict(url=URL + "pretrained/cct_7_3x1_32_sine_cifar100_5000epochs.pth"),
    "7_3x2_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_7_3x2_32"),
    "7_3x2_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cct_7_3x2_32_sine"),
    "7_7x2_224": IMAGENET | dict(github="SHI-Labs/Compact-Transformers cct_7_7x2_224"),
    "7_7x2_224_sine": IMAGENET | dict(url=URL + "pretrained/cct_7_7x2_224_flowers102.pth"),
    "14_7x2_224": IMAGENET | dict(url=URL + "pretrained/cct_14_7x2_224_imagenet.pth"),
    "14_7x2_384": IMAGENET | dict(url=URL + "finetuned/cct_14_7x2_384_imagenet.pth"),
    "14_7x2_384_fl": IMAGENET | dict(url=URL + "finetuned/cct_14_7x2_384_flowers102.pth"),
    "cvt_2_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_2_4_32"),
    "cvt_2_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_2_4_32_sine"),
    "cvt_4_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_4_4_32"),
    "cvt_4_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_4_4_32_sine"),
    "cvt_6_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_6_4_32"),
    "cvt_6_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_6_4_32_sine"),
    "cvt_7_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_7_4_32"),
    "cvt_7_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers cvt_7_4_32_sine"),
    "lite_2_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_2_4_32"),
    "lite_2_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_2_4_32_sine"),
    "lite_4_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_4_4_32"),
    "lite_4_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_4_4_32_sine"),
    "lite_6_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_6_4_32"),
    "lite_6_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_6_4_32_sine"),
    "lite_7_4_32": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_7_4_32"),
    "lite_7_4_32_sine": CIFAR | dict(github="SHI-Labs/Compact-Transformers vit_7_4_32_sine"),
}
THEIRS, OURS = "classifier.blocks.{i}", "stack.blocks.{i}"


def layout(model: CCT) -> list[Rename]:
    """The authors' names, in which patches are a convolution like others."""
    stem = (
        Rename("tokenizer.conv_layers.0.0.{p}", "stem.proj.{p}")
        if isinstance(model.stem, PatchTokens)
        else Rename("tokenizer.conv_layers.{i}.0.weight", "stem.convs.{i}.weight")
    )
    return [
        stem,
        Rename("classifier.class_emb", "cls"),
        Rename("classifier.positional_emb", "positions.table"),
        Rename(f"{THEIRS}.pre_norm.{{p}}", f"{OURS}.mix.f.norm.{{p}}"),
        Rename(f"{THEIRS}.self_attn.qkv.weight", f"{OURS}.mix.f.f.qkv.weight"),
        Rename(f"{THEIRS}.self_attn.proj.{{p}}", f"{OURS}.mix.f.f.out.{{p}}"),
        Rename(f"{THEIRS}.norm1.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Rename(f"{THEIRS}.linear1.{{p}}", f"{OURS}.feed.f.up.{{p}}"),
        Rename(f"{THEIRS}.linear2.{{p}}", f"{OURS}.feed.f.down.{{p}}"),
        Rename("classifier.norm.{p}", "norm.{p}"),
        Rename("classifier.attention_pool.{p}", "weigh.score.{p}"),
        Rename("classifier.fc.{p}", "head.{p}"),
    ]


RULES = {"official": layout}
