"""White-Box Transformers via Sparse Rate Reduction. Yu et al., 2023. arXiv:2306.01129.

New here: a layer is one step of an optimisation that can be read. Attention compresses: queries, keys and values are
one and the same projection onto a few subspaces, so that tokens move towards their likes in each. In place of the
feed-forward stands one step of ISTA towards a sparse, non-negative code in a learned dictionary, without residual.

Differs: written with one matrix product less, D^T (x - D x) for D^T x - D^T D x, which is the same number. Other
picture sizes than `image` are read. The masked autoencoder of a later paper is `crate_mae`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, Pre, Stack, check_heads, merge_heads, split_heads
from plait.core.init import torch_default
from plait.core.tokens import Tokens
from plait.core.weights import Rename
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import patch_grid
from plait.parts.towers.backbone import Backbone


class Subspaces(nn.Module):
    """Self-attention whose queries, keys and values are the same: Tokens (B, N, D) -> Tokens (B, N, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads, self.attend = heads, Attend()
        self.onto, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, t: Tokens) -> Tokens:
        (w,) = split_heads(self.onto(t.x), 1, self.heads)  # (B, H, N, E)
        t = self.attend(t, w, w, w)
        return t.replace(x=self.out(merge_heads(t.x)))


class Ista(nn.Module):
    """relu(x + step * (D^T (x - D x) - penalty)): one step, from x itself, towards the non-negative z that makes
    |x - D z|^2 / 2 + penalty * |z|_1 small. Tokens (B, N, D) -> Tokens (B, N, D)."""

    step, penalty = 0.1, 0.1

    def __init__(self, width: int):
        super().__init__()
        self.dictionary = nn.Parameter(torch.empty(width, width))

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.dictionary)

    def forward(self, t: Tokens) -> Tokens:
        short = t.x - F.linear(t.x, self.dictionary)  # what the code does not explain
        return t.replace(x=F.relu(t.x + self.step * (short @ self.dictionary - self.penalty)))


class Normed(nn.Module):
    """f(norm(x)), without a residual: Tokens -> Tokens."""

    def __init__(self, norm: nn.Module, f: nn.Module):
        super().__init__()
        self.norm, self.f = norm, f

    def forward(self, t: Tokens) -> Tokens:
        return self.f(t.replace(x=self.norm(t.x)))


class NormedPatches(nn.Module):
    """Patches, normed as pixels and as tokens: (B, 3, H, W) -> Tokens (B, H/P * W/P, D) with its grid."""

    interleaved = True  # a pixel's channels lie side by side

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.patch, self.norm = patch, nn.LayerNorm(width)
        self.for_channels(3)

    def for_channels(self, channels: int) -> None:
        """Layers for pictures of so many channels."""
        pixels = channels * self.patch**2
        self.pixels, self.proj = nn.LayerNorm(pixels), nn.Linear(pixels, self.norm.normalized_shape[0])

    def forward(self, x: Tensor) -> Tokens:
        p, (h, w) = self.patch, patch_grid(x, self.patch)
        x = x.unflatten(2, (h, p)).unflatten(4, (w, p)).permute(0, 2, 4, 3, 5, 1)  # (B, h, w, P, P, 3)
        return Tokens(self.norm(self.proj(self.pixels(x.flatten(3).flatten(1, 2)))), grid=(h, w))


class CRATE(Backbone):
    """Pictures (B, 3, H, W) -> logits (B, K) of the class token; all tokens are sparse and non-negative before the last
    norm. image: the (H, W) that positions are learned for; other multiples of the patch are resampled."""

    # with larger ones each token, whose key is its query, begins by seeing itself alone
    scheme = {nn.Linear: torch_default}
    fits = ("image",)

    def __init__(self, *, image=(224, 224), patch=16, width, depth=12, heads, num_classes=1000):
        super().__init__()
        self.width, self.multiple = width, patch
        self.patch_embed = PatchEmbed(NormedPatches(width, patch), (image[0] // patch, image[1] // patch), width)

        def layer() -> Block:
            return Block(Pre(nn.LayerNorm(width), Subspaces(width, heads)), Normed(nn.LayerNorm(width), Ista(width)))

        self.stack = Stack(*(layer() for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()


def coding_rate(x: Tensor, eps: float = 0.01) -> Tensor:
    """(B, N, E) -> (B,): half the logarithm of the volume that N tokens fill, each scaled to length one, at precision
    eps. Attention is to make it small in each subspace."""
    x = F.normalize(x, dim=-1)
    n, e = x.shape[1:]
    return torch.logdet(torch.eye(n, device=x.device) + x @ x.mT * (e / (n * eps))) / 2


MODEL = CRATE
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(image=(32, 32), patch=8, width=32, depth=2, heads=2, num_classes=10),
    "nano": dict(image=(64, 64), patch=8, width=192, depth=8, heads=4),
    "tiny": dict(width=384, heads=6),
    "small": dict(width=576, heads=12),
    "base": dict(width=768, heads=12),
    "large": dict(width=1024, depth=24, heads=16),
}
IMAGENET = dict(crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OFFICIAL = IMAGENET | dict(source="official", licence="mit")
WEIGHTS = {  # the authors' files lie where only a browser gets them
    "tiny": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE CRATE_tiny"),
    "small": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE CRATE_small"),
    "base": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE CRATE_base"),
    "large": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE CRATE_large"),
}
THEIRS, OURS = "transformer.layers.{i}", "stack.blocks.{i}"
RULES = {
    "official": [
        Rename("cls_token", "patch_embed.cls"),
        Rename("pos_embedding", "patch_embed.positions.table"),
        Rename("to_patch_embedding.1.{p}", "patch_embed.stem.pixels.{p}"),
        Rename("to_patch_embedding.2.{p}", "patch_embed.stem.proj.{p}"),
        Rename("to_patch_embedding.3.{p}", "patch_embed.stem.norm.{p}"),
        Rename(f"{THEIRS}.0.norm.{{p}}", f"{OURS}.mix.norm.{{p}}"),
        Rename(f"{THEIRS}.0.fn.qkv.weight", f"{OURS}.mix.f.onto.weight"),
        Rename(f"{THEIRS}.0.fn.to_out.0.{{p}}", f"{OURS}.mix.f.out.{{p}}"),
        Rename(f"{THEIRS}.1.norm.{{p}}", f"{OURS}.feed.norm.{{p}}"),
        Rename(f"{THEIRS}.1.fn.weight", f"{OURS}.feed.f.dictionary"),
        Rename("mlp_head.0.{p}", "norm.{p}"),
        Rename("mlp_head.1.{p}", "head.{p}"),
    ]
}
