"""Meta-Transformer's encoder against timm's blocks, stacked as the official README stacks them for the published
files."""

from __future__ import annotations

import torch
from torch import nn

import plait
from plait.core.catalog import systems
from plait.core.tokens import Tokens
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "meta_transformer"
BLOCKS = {f"{SYSTEM}_b16": (768, 12, 12), f"{SYSTEM}_l14": (1024, 24, 16)}  # width, depth and heads there
CASES = {f"{SYSTEM}_{size}": row["references"]["official"] for size, row in systems()[SYSTEM].weights.items()}


def published(width: int, depth: int, heads: int) -> nn.Sequential:
    declare_torchvision()
    from timm.models.vision_transformer import Block

    blocks = (
        Block(dim=width, num_heads=heads, mlp_ratio=4.0, qkv_bias=True, norm_layer=nn.LayerNorm, act_layer=nn.GELU)
        for _ in range(depth)
    )
    return perturb(nn.Sequential(*blocks))


@torch.no_grad()
def parity(name: str) -> Row:
    ours = plait.create_model(name).eval().encoder
    width, depth, heads = BLOCKS[name]
    theirs = published(width, depth, heads)
    plait.load_weights(ours, theirs.state_dict(), "official")
    assert epsilons(ours) == epsilons(theirs)
    x = 0.02 * torch.randn(2, 50, width, generator=torch.Generator().manual_seed(1))  # small, so that a wrong eps shows
    error = relative_error(ours(Tokens(x)).x, theirs(x))
    return Row(name, f"timm Block x {depth} as {CASES[name]}", count(ours), count(theirs), error)
