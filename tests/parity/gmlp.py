"""gMLP against timm."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "gmlp"
CASES = {f"{SYSTEM}_{size}": row["references"]["timm"] for size, row in systems()[SYSTEM].weights.items()}


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the logits and the pooled features."""
    declare_torchvision()
    import timm

    theirs = perturb(timm.create_model(CASES[name]))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="timm")
    assert epsilons(ours) == epsilons(theirs)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    pooled = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    error = max(relative_error(ours(x), theirs(x)), relative_error(ours.pool(ours.tokens(x)), pooled))
    return Row(name, f"timm {CASES[name]}", count(ours), count(theirs), error)
