"""Which rows have a target: NaN and -100 are none, and of several labels one known is enough."""

from __future__ import annotations

from torch import Tensor


def known_rows(target: Tensor) -> Tensor:
    """(B,) bool of target (B,) or (B, K)."""
    known = ~target.isnan() if target.is_floating_point() else target != -100
    return known & (target != -100) if known.dim() == 1 else (known & (target != -100)).any(1)


def mean_over(values: Tensor, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean of `values` (B,), each times its `weight`, over the True `rows`; 0, with a gradient path, where there is
    none. The sum is divided by the number of rows: weights have the mean 1 over the training rows, not in each batch.
    """
    values = values if weight is None else values * weight.nan_to_num()
    return values.masked_fill(~rows, 0.0).sum() / rows.sum().clamp(min=1)
