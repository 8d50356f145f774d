"""MaxViT against timm, on a picture that is not square too."""

from __future__ import annotations

import torch

import plait
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.pictures import cases
from tests.parity.pyramids import batch_epsilons
from tests.peers import declare_torchvision

SYSTEM = "maxvit"
CASES = cases(SYSTEM)


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the logits, the pooled features and each stage's map; timm gives the stem's map too.

    With random weights the deep sizes amplify rounding: there timm itself differs by 1e-4 between float32 and float64,
    so they are compared in float64.
    """
    declare_torchvision()
    import timm

    theirs = perturb(timm.create_model(CASES[name]))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="timm")
    assert epsilons(ours) == epsilons(theirs) and batch_epsilons(ours) == batch_epsilons(theirs)
    dtype = torch.float64 if sum(plait.model_info(name).arguments["depths"]) > 20 else torch.float32
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    side, error = theirs.pretrained_cfg["input_size"][1], 0.0
    for size in ((side, side), (side, 2 * side)) if side == 224 else ((side, side),):
        x = torch.randn(2 if side == 224 else 1, 3, *size, generator=torch.Generator().manual_seed(size[1])).to(dtype)
        last, (_, *features) = theirs.forward_intermediates(x)
        t = ours.tokens(x)
        pairs = [(ours.head(ours.pool(t)), theirs(x)), (ours.pool(t), theirs.forward_head(last, pre_logits=True))]
        error = max(error, *(relative_error(a, b) for a, b in [*pairs, *zip(ours.maps(x), features, strict=True)]))
    return Row(name, f"timm {CASES[name]}", count(ours), count(theirs), error)
