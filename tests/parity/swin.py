"""Swin against timm at its own size, and against transformers at others, where windows are filled up and every grid is
shifted."""

from __future__ import annotations

import torch

import plait
from tests.parity.compare import Row, perturb, relative_error
from tests.parity.files import published
from tests.parity.pictures import cases
from tests.parity.pyramids import against_timm
from tests.peers import declare_torchvision

SYSTEM = "swin"
CASES = cases(SYSTEM)


def parity(name: str) -> Row:
    return against_timm(name, other=None)


@torch.no_grad()
def against_transformers(height: int, width: int) -> float:
    """The worst of the logits and the last map of a model of four stages with windows of 4, on pictures of any size."""
    declare_torchvision()
    from transformers import SwinConfig, SwinForImageClassification

    depths, heads = (2, 2, 2, 2), (1, 2, 4, 8)
    config = SwinConfig(
        embed_dim=32,
        depths=list(depths),
        num_heads=list(heads),
        window_size=4,
        num_labels=7,
        image_size=96,
        output_hidden_states=True,
    )
    theirs = perturb(SwinForImageClassification(config))
    ours = plait.create_model("swin_toy", patch=4, width=32, depths=depths, heads=heads, window=4, num_classes=7).eval()
    plait.load_weights(ours, published(theirs), "transformers")
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    out = theirs(x)
    return max(relative_error(ours(x), out.logits), relative_error(ours.maps(x)[-1], out.reshaped_hidden_states[-1]))
