"""A trained model's outputs for rows of a table: in order, one per row."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.rows import Rows
from plait.train.parallel import to_device


def without(batch: dict, slots: Iterable[str]) -> dict:
    """The batch with these slots marked absent."""
    gone = set(slots)
    return {**batch, "present": {s: torch.zeros_like(p) if s in gone else p for s, p in batch["present"].items()}}


def outputs(
    model: nn.Module,
    rows: Rows,
    index: np.ndarray,
    *,
    batch_size: int = 128,
    precision: str = "fp32",
    absent: Iterable[str] = (),
    truth: np.ndarray | None = None,
    call: Callable[[nn.Module, dict], Tensor | dict[str, Tensor]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray | dict[str, np.ndarray]:
    """`model.answer` (or `call(model, batch)`) for the rows `index`, as float32 numpy in that order. absent: slots
    taken away.

    truth (n, ...): the targets of all rows, for models that say what the true answer costs them.
    """
    device = next(model.parameters()).device
    call = call or (lambda m, b: m.answer(b))
    training, found = model.training, []
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            for start in range(0, len(index), batch_size):
                some = index[start : start + batch_size]
                batch = rows.batch(some) | ({} if truth is None else {"target": torch.from_numpy(truth[some])})
                batch = without(to_device(batch, device), absent)
                out = call(model, batch)
                found.append(
                    {k: v.float().cpu().numpy() for k, v in out.items()}
                    if isinstance(out, dict)
                    else out.float().cpu().numpy()
                )
                if progress:
                    progress(min(start + batch_size, len(index)), len(index))
    finally:
        model.train(training)
    if found and isinstance(found[0], dict):
        return {k: np.concatenate([f[k] for f in found]) for k in found[0]}
    return np.concatenate(found)
