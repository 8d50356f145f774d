"""The mean and the spread of a table's pictures, by which a system reads them that begins from nothing."""

from __future__ import annotations

import numpy as np
import torch

from plait.data.drawn import places
from plait.data.rows import Rows

LOOKED = 512  # rows that are looked at
FAINT = 0.05  # the least spread that is divided by: what is fainter is noise


def colours(rows: Rows, index: np.ndarray) -> dict[str, tuple[float, ...]]:
    """`mean` and `std` (3,) of the pictures in the rows `index`, of some hundreds where they are many; {} without
    any."""
    slots = [s.name for s in rows.schema.slots if s.kind == "image"]
    some = index[places(len(index), LOOKED)] if slots else index[:0]
    sums, count = np.zeros((2, 3)), 0
    for at in range(0, len(some), 64):
        batch = rows.batch(some[at : at + 64])
        for slot in slots:
            x = batch[slot][batch["present"][slot]].double()  # (B, 3, H, W) in [0, 1]
            sums += torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]).numpy()
            count += x[:, 0].numel()
    if not count:
        return {}
    mean, squares = sums / count
    std = np.sqrt(np.maximum(squares - mean**2, FAINT**2))
    return {"mean": tuple(mean.round(4).tolist()), "std": tuple(std.round(4).tolist())}
