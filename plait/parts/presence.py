"""What is there and what is not: batches of several modalities, any of them absent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.tokens import check_mask
from plait.errors import PlaitError, nearest

Blank = tuple[tuple[int, ...], torch.dtype]  # the shape of one row and its dtype


BESIDE = ("keep", "present", "visible", "window", "target", "row", "same", "steps", "noisy", "time")  # in a batch


class Streams(NamedTuple):
    """Every slot of a model, completed: values (B, ...), keep {slot: (B, N)} where given, present {slot: (B,)}."""

    values: dict[str, Tensor]
    keep: dict[str, Tensor]
    present: dict[str, Tensor]

    def mask(self, slot: str) -> Tensor:
        """(B, N) bool: which of the tokens (B, N) of a slot are real."""
        return masked(self.keep.get(slot), self.present[slot], self.values[slot].shape[1])


def fill_absent(batch: dict, blanks: dict[str, Blank]) -> Streams:
    """Every slot in `blanks` from `batch`, a blank of zeros where the batch or the row lacks it.

    Rows marked absent are blanked too, so that whatever lies in them (even NaN) is never read. A missing `present`
    entry means that all rows are there; `keep` comes out False in absent rows. Raises ValueError when the batch has
    none of the slots.
    """
    given = [batch[s] for s in blanks if s in batch]
    for name in (*batch, *batch.get("keep", ()), *batch.get("present", ())):
        if name not in blanks and name not in BESIDE:
            raise PlaitError(f"the batch holds {name!r}, which the model does not read. {nearest(name, blanks)}")
    if not given:
        raise PlaitError(
            f"the batch holds {', '.join(batch) or 'nothing'}: expected at least one of {', '.join(blanks)}"
        )
    rows, device = given[0].shape[0], given[0].device
    values, keeps, presents = {}, {}, {}
    for slot, (shape, dtype) in blanks.items():
        value = batch.get(slot)
        if value is None:
            values[slot] = torch.zeros(rows, *shape, dtype=dtype, device=device)
            presents[slot] = torch.zeros(rows, dtype=torch.bool, device=device)
            keep = None
        else:
            if value.dim() <= len(shape):
                raise PlaitError(
                    f"{slot!r}: got ids or values {tuple(value.shape)}, expected (B, {'N, ' * len(shape)}...)"
                )
            present = batch.get("present", {}).get(slot)
            presents[slot] = torch.ones(rows, dtype=torch.bool, device=device) if present is None else present
            values[slot] = blank_rows(value, presents[slot])
            keep = batch.get("keep", {}).get(slot)
            check_mask(keep, rows, what=f"keep of {slot!r}")
        if keep is not None:
            keeps[slot] = keep & presents[slot].view(-1, *[1] * (keep.dim() - 1))
    return Streams(values, keeps, presents)


def side_by_side(s: Streams, slots: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The texts of some slots as one (B, K, N), the shorter ones padded, and which of their words are real."""
    longest = max(s.values[n].shape[1] for n in slots)
    wide = [(0, longest - s.values[n].shape[1]) for n in slots]
    ids = torch.stack([F.pad(s.values[n], pad) for n, pad in zip(slots, wide)], 1)
    return ids, torch.stack([F.pad(s.mask(n), pad) for n, pad in zip(slots, wide)], 1)


def visible(batch: dict, present: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a fusion may see of what is there: {slot: (B,) bool}. While training, batch["visible"] hides some slots from
    it, so that it learns to do without them, though each slot's own part still learns from all its rows."""
    hidden = batch.get("visible", {})
    return {slot: there & hidden[slot] if slot in hidden else there for slot, there in present.items()}


def blank_rows(value: Tensor, present: Tensor) -> Tensor:
    """`value` (B, ...) with zeros in the rows where `present` (B,) is False."""
    return value.masked_fill(~present.view(-1, *[1] * (value.dim() - 1)), 0)


def masked(keep: Tensor | None, present: Tensor, count: int) -> Tensor:
    """(B, count) bool: which tokens of a slot are real, given its own mask (or None) and whether the row has the slot
    at all."""
    return present[:, None].expand(-1, count) if keep is None else keep & present[:, None]
