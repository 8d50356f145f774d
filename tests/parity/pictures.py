"""What the checks of the plain vision transformers share: timm's model of the same name, at its own size and at
another."""

from __future__ import annotations

from functools import partial

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
def against_timm(name: str, reference: str, limit: float) -> Row:
    """Logits (features where there is no head) of both models on pictures of the native size and on half of it,
    positions resampled. limit: parameters of a model that is compared whole; of a larger one two layers are."""
    declare_torchvision()
    import timm

    make = partial(timm.create_model, reference, dynamic_img_size=True)
    with torch.device("meta"):
        whole = make()
    counts = plait.model_info(name).parameters, count(whole)
    if counts[0] != counts[1]:
        return Row(name, f"timm {reference}", *counts, float("inf"))
    cut, said = ({}, "") if counts[1] <= limit else (dict(depth=2), f", 2 of {len(whole.blocks)} layers")
    theirs = perturb(make(**cut))
    ours = plait.load_weights(plait.create_model(name, **cut).eval(), theirs.state_dict(), source="timm")
    assert epsilons(ours) == epsilons(theirs) and count(ours) == count(theirs)
    patch, side = theirs.patch_embed.patch_size[0], theirs.pretrained_cfg["input_size"][1]
    error = 0.0
    for height, width in ((side, side), (side // 2 // patch * patch, side)):
        x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))
        error = max(error, relative_error(ours(x), theirs(x)))
    return Row(name, f"timm {reference}{said}", *counts, error, "layers" if said else "output")
