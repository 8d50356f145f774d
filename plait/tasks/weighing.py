"""How much classes count, as they are given by name or by how rare they are."""

from __future__ import annotations

import numpy as np

from plait.data.words import Labels
from plait.errors import UsageError, nearest


def class_weights(given: dict[str, float] | str, names: list[str], frequencies: np.ndarray) -> np.ndarray:
    """(K,) of {class: weight}, others 1, or of "balanced": 1 over the frequency. Scaled so that the mean over rows with
    these `frequencies` (K,) is 1. Raises UsageError for an unknown class, or where nothing is left."""
    weights = np.ones(len(names))
    if isinstance(given, str):
        weights = np.where(frequencies > 0, 1 / np.maximum(frequencies, 1e-12), 0)
    else:
        known = Labels(names)
        for name, weight in given.items():
            at = known.find(str(name))
            if at is None:
                raise UsageError(f"class_weight: there is no class {name!r}. {nearest(str(name), names)}")
            weights[at] = weight
    mean = float(weights @ frequencies)
    if not mean > 0:
        raise UsageError("class_weight: all classes of the training rows weigh 0: there is nothing to learn from")
    return weights / mean
