"""The eps of the norms, compared as numbers: on inputs of ordinary size a wrong one stays below the tolerance of the
outputs."""

from __future__ import annotations

from collections import Counter

from torch import nn


def epsilons(model: nn.Module) -> Counter[float]:
    """How many LayerNorms of `model` use each eps."""
    return Counter(m.eps for m in model.modules() if isinstance(m, nn.LayerNorm))


def scales(model: nn.Module) -> dict[str, int]:
    """How many norms of `model`, of whatever class, have each eps, those over a batch apart: {"batch 1e-05": 3,
    ...}."""
    norms = (m for m in model.modules() if isinstance(getattr(m, "eps", None), float))
    batch = (nn.BatchNorm1d, nn.BatchNorm2d)
    return dict(Counter(f"{'batch ' if isinstance(m, batch) else ''}{m.eps:.0e}" for m in norms))
