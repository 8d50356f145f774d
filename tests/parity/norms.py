"""The eps of the norms, compared as numbers: on inputs of ordinary size a wrong one stays below the tolerance of the
outputs."""

from __future__ import annotations

from collections import Counter

from torch import nn


def epsilons(model: nn.Module) -> Counter[float]:
    """How many LayerNorms of `model` use each eps."""
    return Counter(m.eps for m in model.modules() if isinstance(m, nn.LayerNorm))
