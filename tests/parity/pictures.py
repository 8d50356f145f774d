"""What the checks of the plain vision transformers share: timm's model of the same name, at its own size and at
another."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision


def cases(system: str) -> dict[str, str]:
    """{our name: timm's}."""
    return {f"{system}_{size}": row["references"]["timm"] for size, row in systems()[system].weights.items()}


@torch.no_grad()
def against_timm(name: str, reference: str) -> Row:
    """Logits (features where there is no head) of both models on pictures of the native size and on half of it,
    positions resampled."""
    declare_torchvision()
    import timm

    theirs = perturb(timm.create_model(reference, dynamic_img_size=True))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="timm")
    assert epsilons(ours) == epsilons(theirs)
    patch, side = theirs.patch_embed.patch_size[0], theirs.pretrained_cfg["input_size"][1]
    error = 0.0
    for height, width in ((side, side), (side // 2 // patch * patch, side)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        error = max(error, relative_error(ours(x), theirs(x)))
    return Row(name, f"timm {reference}", count(ours), count(theirs), error)
