"""ViTamin against timm."""

from __future__ import annotations

import torch

import plait
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.pictures import cases
from tests.peers import declare_torchvision

SYSTEM = "vitamin"
CASES = cases(SYSTEM)


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the logits at the native size and at another, not square, that the peer was made for too."""
    declare_torchvision()
    import timm

    error, native = 0.0, tuple(timm.get_pretrained_cfg(CASES[name]).input_size[1:])
    assert plait.model_info(name).arguments.get("image", (224, 224)) == native
    for size in (native, (native[0] // 2, native[1] - 32)):
        theirs = perturb(timm.create_model(CASES[name], img_size=size))
        ours = plait.load_weights(plait.create_model(name, image=size).eval(), theirs.state_dict(), source="timm")
        assert epsilons(ours) == epsilons(theirs)
        if size == native:
            counts = count(ours), count(theirs)
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        error = max(error, relative_error(ours(x), theirs(x)))
    return Row(name, f"timm {CASES[name]}", *counts, error)
