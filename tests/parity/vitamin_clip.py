"""ViTamin's pairs of towers against open_clip, on padded texts."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.clip import difference, inputs
from tests.parity.compare import Row, count, perturb
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "vitamin_clip"
CASES = {f"{SYSTEM}_{size}": row["references"]["open_clip"] for size, row in systems()[SYSTEM].weights.items()}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    import open_clip

    theirs = perturb(open_clip.create_model(CASES[name]))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="open_clip")
    assert epsilons(ours) == epsilons(theirs)
    x, ids, keep = inputs(theirs.visual.trunk.pretrained_cfg["input_size"][1], 49408, 49407)
    images, text = theirs.encode_image(x, normalize=True), theirs.encode_text(ids, normalize=True)
    error = difference(ours, {"image": x, "text": ids, "keep": {"text": keep}}, images, text, theirs.logit_scale)
    return Row(name, f"open_clip {CASES[name]}", count(ours), count(theirs), error)
