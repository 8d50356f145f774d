"""The straight part of an answer: what a linear model makes of numbers, categories and vectors, solved before training.

On a small table nothing beats it by much, and much that is trained by gradient steps falls behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from plait.data.rows import Rows
from plait.tasks.known import known_rows

if TYPE_CHECKING:
    from plait.tasks.rowwise import Answer

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of the squared weights, beside the sum of the rows' losses
MOST_ROWS, FOLDS = 20_000, 4
WIDE, RARE = (
    256,
    0.05,
)  # columns; the share of rows that are not zero in one that is read by those alone, in wide tables


def solve_straight(model: Answer, rows: Rows, index: np.ndarray, seed: int) -> float | None:
    """Fill the linear layers of `model.head` from the training rows `index`; the penalty is chosen by cross-validation.

    Rows count by their weights, where the batch has them.

    Returns the penalty, or None where the model has no such layers. On the CPU; at most 20,000 rows are read.
    """
    layers = model.head.linear
    if not layers:
        return None
    index = np.random.default_rng(seed).permutation(index)[:MOST_ROWS]
    batch = rows.batch(index)
    prepared = model.bound.prepared(batch)
    raw = model.bound.raw(prepared)
    tied = len(cast(Tensor, next(iter(layers.values())).weight))  # rows of weights: one each, or one for all
    x = torch.cat([raw[slot] * prepared["present"][slot][:, None] for slot in layers], 1).double()  # (n, F)
    target, counts = model.target(batch), batch.get("weight")
    known = known_rows(target)
    x, target = x[known], target[known]
    counts = torch.ones(len(x)) if counts is None else counts[known]
    prior = model.head.prior.double()

    def loss(outputs: Tensor, rows: Tensor | slice) -> Tensor:
        return (model.loss(outputs, target[rows]) * counts[rows]).sum()

    folds = np.arange(len(x)) % min(FOLDS, len(x))
    if len(x) < 8:
        return None
    tried: dict[float, float] = {}
    for penalty in PENALTIES:
        held = 0.0
        for fold in range(folds.max() + 1):
            train, test = (
                torch.from_numpy(np.flatnonzero(folds != fold)),
                torch.from_numpy(np.flatnonzero(folds == fold)),
            )
            weight, bias = _minimise(x[train], partial(loss, rows=train), prior, penalty, tied)
            held += float(loss(prior + x[test] @ weight.T + bias, test))
        tried[penalty] = held
    best = min(tried, key=lambda penalty: tried[penalty])
    weight, bias = _minimise(x, lambda out: loss(out, slice(None)), prior, best, tied)
    with torch.no_grad():
        pieces = weight.float().split([layer.in_features for layer in layers.values()], 1)
        for layer, piece in zip(layers.values(), pieces):
            layer.weight.copy_(piece)  # type: ignore[operator]
            layer.bias.copy_(bias.float() / len(layers))  # type: ignore[operator]
    return best


def _minimise(
    x: Tensor, loss: Callable[[Tensor], Tensor], prior: Tensor, penalty: float, tied: int | None = None
) -> tuple[Tensor, Tensor]:
    """weight (K, F), or (1, F) where it is tied, and bias (K,) that minimise the sum of losses plus penalty / 2
    |weight|^2, by L-BFGS."""
    weight = torch.zeros(tied or len(prior), x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(len(prior), dtype=x.dtype, requires_grad=True)
    times = _times(x)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=100, tolerance_grad=1e-5, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = (loss(prior + times(weight) + bias) + penalty / 2 * weight.square().sum()) / len(x)
        value.backward()
        return value

    solver.step(closure)
    return weight.detach(), bias.detach()


def _times(x: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes x @ weight.T (n, K) of weight (K, F). Of wide tables most columns stand for one value of a category:
    zeros are then left out of them."""
    if x.shape[1] < WIDE:
        return lambda weight: x @ weight.T
    rows, columns = x.nonzero(as_tuple=True)
    rare = columns.bincount(minlength=x.shape[1]) < RARE * len(x)
    rows, columns = rows[rare[columns]], columns[rare[columns]]
    values, rest = x[rows, columns][:, None], (~rare).nonzero()[:, 0]
    dense = x.index_select(1, rest)

    def times(weight: Tensor) -> Tensor:
        told = values * weight.T.index_select(0, columns)
        return (dense @ weight.index_select(1, rest).T).index_add(0, rows, told)

    return times
