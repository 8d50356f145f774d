"""CvT against transformers, also on pictures that are not square."""

from __future__ import annotations

import re

import torch
from torch import nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.pyramids import batch_epsilons
from tests.peers import declare_torchvision

SYSTEM = "cvt"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
SHAPES = {
    "13": dict(depth=[1, 2, 10]),
    "21": dict(depth=[1, 4, 16]),
    "w24": dict(depth=[2, 2, 20], embed_dim=[192, 768, 1024], num_heads=[3, 12, 16]),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    """Ours and theirs with the same weights, and a picture size (H, W)."""
    declare_torchvision()
    from transformers import CvtConfig, CvtForImageClassification

    shape = name.removeprefix("cvt_")
    theirs = CvtForImageClassification(CvtConfig(num_labels=1000, **SHAPES[shape.split("_")[0]]))
    ours = plait.load_weights(plait.create_model(name), theirs.state_dict(), source="transformers")
    return ours, theirs, (384, 384) if shape.endswith("384") else (224, 224)


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the logits, each map and the class token, normed."""
    ours, theirs, side = pair(name)
    perturb(theirs)
    for key, p in theirs.named_parameters():
        if re.search(r"projection_(query|key)\.(weight|convolution_projection\.convolution\.weight)", key):
            p.mul_(10)  # where all scores are near zero nobody tells one number of heads from another
    plait.load_weights(ours.eval(), theirs.state_dict(), source="transformers")
    assert epsilons(ours) == epsilons(theirs) and batch_epsilons(ours) == batch_epsilons(theirs)
    error = 0.0
    for size in (side, (96, 160)):
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
        body = theirs.cvt(x, output_hidden_states=True)
        pairs = [(ours(x), theirs(x).logits), (ours.pool(ours.tokens(x)), theirs.layernorm(body.cls_token_value)[:, 0])]
        pairs += zip(ours.maps(x), body.hidden_states, strict=True)
        error = max(error, *(relative_error(a, b) for a, b in pairs))
    return Row(name, f"transformers {CASES[name]}", count(ours), count(theirs), error)
