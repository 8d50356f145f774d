"""PVT against transformers, at the native size: transformers cannot resample its positions."""

from __future__ import annotations

import torch
from torch import nn

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.files import published
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "pvt"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}


def pair(name: str) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    """Ours and theirs with the same perturbed weights, and the picture size (H, W)."""
    declare_torchvision()
    from transformers import PvtConfig, PvtForImageClassification

    made = PvtConfig(depths=list(DEPTHS[name.split("_")[1]]), num_labels=1000)
    theirs = perturb(PvtForImageClassification(made))
    return plait.load_weights(plait.create_model(name).eval(), published(theirs), "transformers"), theirs, (224, 224)


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the logits, each stage's map and the last tokens."""
    ours, theirs, size = pair(name)
    assert epsilons(ours) == epsilons(theirs)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    out = theirs(x, output_hidden_states=True)
    ends = [sum(theirs.config.depths[: s + 1]) - 1 for s in range(4)]
    maps = [m.flatten(2).transpose(1, 2) for m in ours.maps(x)]
    last = ours.tokens(x).x
    pairs = [
        (ours(x), out.logits),
        *zip(maps[:3], (out.hidden_states[i] for i in ends[:3])),
        (last, out.hidden_states[ends[3]]),
    ]
    return Row(
        name, f"transformers {CASES[name]}", count(ours), count(theirs), max(relative_error(a, b) for a, b in pairs)
    )
