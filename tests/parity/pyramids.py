"""What the checks of pyramids share: timm's model with the same weights, at its own size and at another that is not
square."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

import plait
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def batch_epsilons(model: nn.Module) -> Counter[float]:
    """How many batch norms of `model` use each eps."""
    return Counter(m.eps for m in model.modules() if isinstance(m, BATCH_NORMS))


@torch.no_grad()
def against_timm(
    name: str, *, other: tuple[int, int] | None = (96, 160), before: int = 0, limit: float = float("inf")
) -> Row:
    """The worst of the logits, the pooled features and each map, on pictures of the native size and of `other` (H,
    W). before: how many maps timm's gives of its stem. limit: parameters of a model that is compared whole; of a larger
    one a layer a stage is."""
    declare_torchvision()
    import timm

    reference = plait.model_info(name).references["timm"]
    with torch.device("meta"):
        whole = timm.create_model(reference)
    counts = plait.model_info(name).parameters, count(whole)
    if counts[0] != counts[1]:
        return Row(name, f"timm {reference}", *counts, float("inf"))
    cut, said = {}, ""
    if counts[1] > limit:
        depths = [len(stage.blocks) for stage in whole.stages]
        cut, said = dict(depths=(1,) * len(depths)), f", {len(depths)} of {sum(depths)} layers"
    theirs = perturb(timm.create_model(reference, **cut))
    ours = plait.load_weights(plait.create_model(name, **cut).eval(), theirs.state_dict(), source="timm")
    assert epsilons(ours) == epsilons(theirs) and batch_epsilons(ours) == batch_epsilons(theirs)
    assert count(ours) == count(theirs)
    error = 0.0
    for size in (theirs.pretrained_cfg["input_size"][1:], other):
        if size is None:
            continue
        x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
        last, features = theirs.forward_intermediates(x)
        pairs = [
            (ours(x), theirs(x)),
            (ours.pool(ours.tokens(x)), theirs.forward_head(theirs.forward_features(x), pre_logits=True)),
        ]
        pairs += zip(ours.maps(x), features[before:], strict=True)
        error = max(error, *(relative_error(a, b) for a, b in pairs))
    return Row(name, f"timm {reference}{said}", *counts, error, "layers" if said else "output")
