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

    error = 0.0
    for size in ((224, 224), (96, 160)):
        theirs = perturb(timm.create_model(CASES[name], img_size=size))
        ours = plait.load_weights(plait.create_model(name, image=size).eval(), theirs.state_dict(), source="timm")
        assert epsilons(ours) == epsilons(theirs)
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        error = max(error, relative_error(ours(x), theirs(x)))
        if size == (224, 224):
            counts = count(ours), count(theirs)
    return Row(name, f"timm {CASES[name]}", *counts, error)
