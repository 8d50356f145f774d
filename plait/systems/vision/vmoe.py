"""Scaling Vision with Sparse Mixture of Experts. Riquelme et al., 2021. arXiv:2106.05974.

New here: in some layers of a vision transformer the feed-forward step is one of many experts. A router picks a few for
each patch; each expert has places for little more than its even share, and those patches go first of which the router
is surest, so that with less room the dull ones are left out. Two losses keep all experts busy.

Differs: in training the tokens of a whole batch compete, as in the paper; otherwise those of each picture, with four
times an even share (of eight experts, room for all), so that an answer does not hang on the batch. Capacities are not
rounded up to multiples of four.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Attention, FeedForward, Stack
from plait.core.weights import Rename, Rule, Transpose
from plait.parts.experts import MixtureOfExperts
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.backbone import Backbone
from plait.parts.towers.encoder import pre_norm

Norm = partial(nn.LayerNorm, eps=1e-6)
Gelu = partial(nn.GELU, approximate="tanh")


class VMoE(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K).

    sparse: the layers with `experts`, of which a token passes `chosen`. hidden: the head's hidden width, 0 for a linear
    one.
    """

    fits = ("image",)

    def __init__(
        self, *, image=(224, 224), patch, width, depth, heads, sparse, experts=32, chosen=2, hidden=0,
        num_classes=1000,
    ):  # fmt: skip
        super().__init__()
        self.width, self.heads, self.multiple = width, heads, patch
        self.patch_embed = PatchEmbed(PatchTokens(width, patch), (image[0] // patch, image[1] // patch), width)
        dense = partial(FeedForward, act=Gelu)
        mixed = partial(MixtureOfExperts, experts=experts, chosen=chosen, act=Gelu)
        feeds = (mixed(width, 4 * width) if i in sparse else dense(width, 4 * width) for i in range(depth))
        self.stack = Stack(*(pre_norm(width, Attention(width, heads), feed, norm=Norm) for feed in feeds))
        self.norm = Norm(width)
        classes = nn.Linear(hidden or width, num_classes) if num_classes else nn.Identity()
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), classes) if num_classes and hidden else classes


SMALL = dict(width=512, depth=8, heads=8)
BASE = dict(width=768, depth=12, heads=12)
LARGE = dict(width=1024, depth=24, heads=16)
HUGE = dict(width=1280, depth=32, heads=16)
EVERY_8 = dict(sparse=(1, 3, 5, 7))
EVERY_12 = dict(sparse=(1, 3, 5, 7, 9, 11))
EVERY_24 = dict(sparse=(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23))
EVERY_32 = dict(sparse=(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))

MODEL = VMoE
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=64, depth=2, heads=1, sparse=(0,), experts=4, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=6, heads=3, sparse=(3, 5), experts=8),
    "s32_last2": SMALL | dict(patch=32, sparse=(5, 7)),
    "s32_every2": SMALL | EVERY_8 | dict(patch=32),
    "b32_last2": BASE | dict(patch=32, sparse=(9, 11)),
    "b32_every2": BASE | EVERY_12 | dict(patch=32),
    "b16_last2": BASE | dict(patch=16, sparse=(9, 11)),
    "b16_every2": BASE | EVERY_12 | dict(patch=16),
    "l32_last2": LARGE | dict(patch=32, sparse=(21, 23)),
    "l32_every2": LARGE | EVERY_24 | dict(patch=32),
    "l16_last2": LARGE | dict(patch=16, sparse=(21, 23)),
    "l16_every2": LARGE | EVERY_24 | dict(patch=16),
    "h14_last5": HUGE | dict(patch=14, sparse=(23, 25, 27, 29, 31)),
    "h14_every2": HUGE | EVERY_32 | dict(patch=14),
    "s32_last2_e8": SMALL | dict(patch=32, sparse=(5, 7), experts=8, hidden=512),
    "s32_last2_e8_384": SMALL | dict(image=(384, 384), patch=32, sparse=(5, 7), experts=8),
    "b16_every2_e8_21k": BASE | EVERY_12 | dict(patch=16, experts=8, num_classes=21843),
    "b16_every2_e8_384": BASE | EVERY_12 | dict(image=(384, 384), patch=16, experts=8),
}
WEIGHTS = {}  # the authors' files lie in a bucket, in shards of their own; load_weights reads what they hold as "flax"


def heads(public: list[str], ours: str, width: int) -> Rule:
    """Queries, keys and values (D, H, E), to one matrix (3 H E, D). width: E."""

    def to(kernels: list[Tensor]) -> list[Tensor]:
        return [torch.cat([k.flatten(1).mT for k in kernels])]

    def back(fused: list[Tensor]) -> list[Tensor]:
        return [k.mT.unflatten(1, (-1, width)).contiguous() for k in fused[0].chunk(3)]

    return Rule(tuple(public), (ours,), to, back)


def biases(public: list[str], ours: str, width: int) -> Rule:
    return Rule(
        tuple(public),
        (ours,),
        lambda ts: [torch.cat([b.flatten() for b in ts])],
        lambda ts: [b.unflatten(0, (-1, width)) for b in ts[0].chunk(3)],
    )


def merged(public: str, ours: str, width: int) -> Rule:
    """What merges the heads (H, E, D), to a matrix (D, H E)."""
    return Rule(
        (public,),
        (ours,),
        lambda ts: [ts[0].flatten(0, 1).mT.contiguous()],
        lambda ts: [ts[0].mT.unflatten(0, (-1, width)).contiguous()],
    )


def patches(public: str, ours: str) -> Rule:
    """A convolution (P, P, C, D), to (D, C, P, P)."""
    return Rule(
        (public,),
        (ours,),
        lambda ts: [ts[0].permute(3, 2, 0, 1).contiguous()],
        lambda ts: [ts[0].permute(2, 3, 1, 0).contiguous()],
    )


LAYER, OURS = "Encoder.encoderblock_{i}", "stack.blocks.{i}"
QKV = [f"{LAYER}.SelfAttention.{name}" for name in ("query", "key", "value")]


def flax(model: VMoE) -> list[Rule]:
    width = model.width // model.heads
    head = "head.2" if isinstance(model.head, nn.Sequential) else "head"
    return [
        Rename("cls", "patch_embed.cls"),
        Rename("Encoder.posembed_input.pos_embedding", "patch_embed.positions.table"),
        patches("embedding.kernel", "patch_embed.stem.proj.weight"),
        Rename("embedding.bias", "patch_embed.stem.proj.bias"),
        Rename(f"{LAYER}.LayerNorm_0.scale", f"{OURS}.mix.norm.weight"),
        Rename(f"{LAYER}.LayerNorm_0.bias", f"{OURS}.mix.norm.bias"),
        heads([f"{name}.kernel" for name in QKV], f"{OURS}.mix.f.qkv.weight", width),
        biases([f"{name}.bias" for name in QKV], f"{OURS}.mix.f.qkv.bias", width),
        merged(f"{LAYER}.SelfAttention.out.kernel", f"{OURS}.mix.f.out.weight", width),
        Rename(f"{LAYER}.SelfAttention.out.bias", f"{OURS}.mix.f.out.bias"),
        Rename(f"{LAYER}.LayerNorm_1.scale", f"{OURS}.feed.norm.weight"),
        Rename(f"{LAYER}.LayerNorm_1.bias", f"{OURS}.feed.norm.bias"),
        Transpose(f"{LAYER}.Mlp.Dense_0.kernel", f"{OURS}.feed.f.up.weight"),
        Rename(f"{LAYER}.Mlp.Dense_0.bias", f"{OURS}.feed.f.up.bias"),
        Transpose(f"{LAYER}.Mlp.Dense_1.kernel", f"{OURS}.feed.f.down.weight"),
        Rename(f"{LAYER}.Mlp.Dense_1.bias", f"{OURS}.feed.f.down.bias"),
        Transpose(f"{LAYER}.Moe.Router.dense.kernel", f"{OURS}.feed.f.router.score.weight"),
        Rename(f"{LAYER}.Moe.Mlp.Dense_0.kernel", f"{OURS}.feed.f.experts.up"),
        Rename(f"{LAYER}.Moe.Mlp.Dense_0.bias", f"{OURS}.feed.f.experts.up_bias"),
        Rename(f"{LAYER}.Moe.Mlp.Dense_1.kernel", f"{OURS}.feed.f.experts.down"),
        Rename(f"{LAYER}.Moe.Mlp.Dense_1.bias", f"{OURS}.feed.f.experts.down_bias"),
        Rename("Encoder.encoder_norm.scale", "norm.weight"),
        Rename("Encoder.encoder_norm.bias", "norm.bias"),
        Transpose("pre_logits.kernel", "head.0.weight"),
        Rename("pre_logits.bias", "head.0.bias"),
        Transpose("head.kernel", f"{head}.weight"),
        Rename("head.bias", f"{head}.bias"),
    ]


RULES = {"flax": flax}
