"""TNT against timm, with the authors' order of cutting and norming and the legacy one."""

from __future__ import annotations

import torch

import plait
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.pictures import cases
from tests.peers import declare_torchvision

SYSTEM = "tnt"
CASES = cases(SYSTEM)


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the logits at 224 x 224 and, positions resampled by the peer's own loader, on pictures that are not
    square."""
    declare_torchvision()
    import timm

    error, native = 0.0, tuple(timm.get_pretrained_cfg(CASES[name]).input_size[1:])
    assert plait.model_info(name).arguments.get("image", (224, 224)) == native
    for size in (native, (96, 160)):
        theirs = perturb(timm.create_model(CASES[name], img_size=size))
        for block in theirs.blocks:
            block.attn_in.qk.weight.mul_(10)  # where all scores are near zero nobody tells one number of heads
        ours = plait.load_weights(plait.create_model(name, image=size).eval(), theirs.state_dict(), source="timm")
        assert epsilons(ours) == epsilons(theirs)
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        error = max(error, relative_error(ours(x), theirs(x)))
        if size == native:
            counts = count(ours), count(theirs)
    return Row(name, f"timm {CASES[name]}", *counts, error)
