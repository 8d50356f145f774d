"""The eps of the norms, compared as numbers: on inputs of ordinary size a wrong one stays below the tolerance of the outputs."""

from __future__ import annotations

from torch import nn


def epsilons(model: nn.Module) -> set[float]:
    """Every eps that a LayerNorm of `model` uses."""
    return {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)}
