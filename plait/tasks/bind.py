"""A system of any role as one module that a task can use: batch in, features or vectors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.roles import Backbone, Embedder, Fuser, Model
from plait.errors import UsageError
from plait.parts.heads.parts import Features
from plait.parts.presence import visible

HALF = (0.5, 0.5, 0.5)


class Bound(nn.Module):
    """`system` bound through a role. Pictures arrive in [0, 1] and are normalised here by `mean` and `std`.

    tables: {slot: sizes or width} of the slots that a linear model can read as they are: ids per category column, or
    numbers. This class itself binds what only writes, and has no features.
    """

    def __init__(
        self, system: Model, mean: Sequence[float] = HALF, std: Sequence[float] = HALF, tables: dict | None = None
    ):
        super().__init__()
        self.system, self.tables = system, tables or {}
        self.takes = tuple(system.takes)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """Of the fused vector in `features`."""
        return self.system.width

    @property
    def part_widths(self) -> dict[str, int]:
        """Of the parts in `features`."""
        return {}

    def features(self, batch: dict) -> Features:
        """fused (B, width), parts, present. Raises UsageError for a system that only writes."""
        raise UsageError(
            "this model writes texts and has no vectors: train one with --task retrieve or classify to embed with it"
        )

    def vectors(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, E) unit vectors}. Raises UsageError for a system that is bound as no embedder."""
        raise UsageError("this model has no space that its inputs share: train one with --task retrieve")

    @property
    def raw_widths(self) -> dict[str, int]:
        """{slot: F} of what `raw` gives."""
        widths = {slot: sum(size) if isinstance(size, (list, tuple)) else size for slot, size in self.tables.items()}
        return {slot: 2 * w if slot == "number" else w for slot, w in widths.items()}

    def raw(self, ready: dict) -> dict[str, Tensor]:
        """{slot: (B, F)}: numbers beside flags of what is missing, categories one-hot (nothing for missing ones),
        vectors as they are."""
        out = {}
        for slot, size in self.tables.items():
            x, keep = ready[slot], ready["keep"].get(slot)
            if slot == "category":
                hot = [F.one_hot(x[:, i].clamp(0, n - 1), n)[:, 1:].float() for i, n in enumerate(size)]
                x = torch.cat([F.pad(h, (1, 0)) for h in hot], 1)
            elif slot == "number":
                keep = torch.ones_like(x, dtype=torch.bool) if keep is None else keep
                x = torch.cat([x.masked_fill(~keep, 0.0), (~keep).float()], 1)
            out[slot] = x
        return out

    def prepared(self, batch: dict) -> dict:
        """The batch with normalised pictures; blanks of absent pictures stay zero."""
        ready = {slot: batch[slot] for slot in self.takes if slot in batch}
        ready |= {slot: (x - self.mean) / self.std for slot, x in ready.items() if slot.split("_")[0] == "image"}
        rows = next(iter(ready.values()))
        there = batch.get("present", {})
        ready["present"] = {
            slot: there.get(slot, torch.full(rows.shape[:1], slot in batch, dtype=torch.bool, device=rows.device))
            for slot in self.takes
        }
        ready["keep"] = {slot: k for slot, k in batch.get("keep", {}).items() if slot in self.takes}
        return ready | ({"visible": batch["visible"]} if "visible" in batch else {})


class BackboneBound(Bound):
    """The pooled vector of the one slot."""

    system: Backbone

    def features(self, batch: dict) -> Features:
        ready = self.prepared(batch)
        (slot,) = self.takes
        t = self.system.tokens(ready[slot], ready["keep"].get(slot))
        return Features(self.system.pool(t), {}, {}, ready["present"])


class FuserBound(Bound):
    """What the system fuses, its parts, and the raw inputs of the slots in `tables`."""

    system: Fuser

    @property
    def part_widths(self) -> dict[str, int]:
        return dict(self.system.part_widths)

    def features(self, batch: dict) -> Features:
        ready = self.prepared(batch)
        present, out = ready["present"], self.system.fuse(ready)
        seen = visible(ready, present)
        return Features(out["fused"], out["parts"], self.raw(ready), present, out.get("vectors"), seen)


class EmbedderBound(Bound):
    """The vectors side by side, and their product, which says how they agree."""

    system: Embedder

    @property
    def width(self) -> int:
        return self.system.embed_width * (len(self.takes) + 1)

    def features(self, batch: dict) -> Features:
        ready = self.prepared(batch)
        vectors = self.system.embed(ready)
        product = torch.stack(list(vectors.values())).prod(0)
        return Features(torch.cat([*vectors.values(), product], -1), {}, {}, ready["present"], vectors)

    def vectors(self, batch: dict) -> dict[str, Tensor]:
        return self.system.embed(self.prepared(batch))


BINDERS: dict[str, type[Bound]] = {
    "backbone": BackboneBound,
    "embedder": EmbedderBound,
    "fuser": FuserBound,
    "transcriber": Bound,
    "generator": Bound,
}


def bind(
    system: Model, role: str, mean: Sequence[float] = HALF, std: Sequence[float] = HALF, tables: dict | None = None
) -> Bound:
    """`system` bound through `role`, which must be one of its own."""
    return BINDERS[role](system, mean, std, tables)


def drop_modalities(present: dict[str, Tensor], rate: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Presence (B,) per slot with some slots taken away: in a share `rate` of the rows, each slot goes with probability
    one half.

    A row keeps at least one of the slots it had, so that nothing is asked of nothing.
    """
    slots = list(present)
    there = torch.stack([present[s] for s in slots], 1)  # (B, M)
    device = there.device
    chosen = torch.rand(there.shape[0], 1, generator=generator) < rate
    gone = (torch.rand(there.shape, generator=generator) < 0.5) & chosen
    left = there & ~gone.to(device)
    # Rows that lost everything get one of their slots back, drawn evenly.
    luck = torch.rand(there.shape, generator=generator).to(device).masked_fill(~there, -1.0)
    rescue = torch.zeros_like(there).scatter(1, luck.argmax(1, keepdim=True), True) & there
    left = torch.where(left.any(1, keepdim=True), left, rescue)
    return {s: left[:, i] for i, s in enumerate(slots)}
