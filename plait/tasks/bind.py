"""A system of any role as one module that a task can use: batch in, features or vectors out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.roles import (
    Backbone,
    Codec,
    Detector,
    Diffuser,
    Embedder,
    Fuser,
    Generator,
    Masked,
    Model,
    Policy,
    Transcriber,
)
from plait.data.kinds import KINDS
from plait.errors import UsageError
from plait.parts.heads.parts import Features
from plait.parts.presence import visible

HALF = (0.5, 0.5, 0.5)
LOOKS = ("backbone", "embedder", "fuser", "detector", "generator")  # roles that read pictures and make none


class Bound(nn.Module):
    """`system` bound through a role. `mean` and `std`: what the system's pictures are normalised by.

    slots: {slot: {"kind": its kind, and what that kind is told of it}}, as `Kind.arguments` gives it. What only writes
    has no features.
    """

    def __init__(
        self, system: Model, slots: dict[str, dict], mean: Sequence[float] = HALF, std: Sequence[float] = HALF
    ):
        super().__init__()
        self.system, self.takes = system, tuple(system.takes)
        self.kinds = {slot: KINDS[spec["kind"]] for slot, spec in slots.items()}
        self.told = {slot: {k: v for k, v in spec.items() if k != "kind"} for slot, spec in slots.items()}
        scaled = {"mean": mean, "std": std}
        late = {slot: kind.preprocess(scaled) for slot, kind in self.kinds.items() if kind.late}
        self.preprocess = nn.ModuleDict({slot: module for slot, module in late.items() if module is not None})

    @property
    def width(self) -> int:
        """Of the fused vector in `features`; 0 where there is none."""
        return 0

    @property
    def part_widths(self) -> dict[str, int]:
        """Of the parts in `features`."""
        return {}

    def features(self, batch: dict) -> Features:
        """fused (B, width), parts, present. Raises UsageError for a system that only writes or paints."""
        raise UsageError(
            "this model only writes or paints and has no vectors: to embed, train one with --task retrieve or classify"
        )

    def vectors(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, E) unit vectors}. Raises UsageError for a system that is bound as no embedder."""
        raise UsageError("this model has no space that its inputs share: train one with --task retrieve")

    @property
    def raw_widths(self) -> dict[str, int]:
        """{slot: F} of the raw inputs in `features`."""
        return {}

    def raw(self, ready: dict) -> dict[str, Tensor]:
        """{slot: (B, F)}: numbers beside flags of what is missing, categories one-hot (nothing for missing ones),
        vectors as they are."""
        keep = ready["keep"]
        return {s: self.kinds[s].raw(ready[s], keep.get(s), **self.told[s]) for s in self.raw_widths}

    def prepared(self, batch: dict) -> dict:
        """The batch as the system reads it, such as with normalised pictures."""
        ready = {slot: batch[slot] for slot in self.takes if slot in batch}
        ready |= {slot: scale(ready[slot]) for slot, scale in self.preprocess.items() if slot in ready}
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

    @property
    def width(self) -> int:
        return self.system.width

    def features(self, batch: dict) -> Features:
        ready = self.prepared(batch)
        (slot,) = self.takes
        t = self.system.tokens(ready[slot], ready["keep"].get(slot))
        return Features(self.system.pool(t), {}, {}, ready["present"], losses=t.losses)

    def vectors(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, D)}, the pooled vectors as unit ones."""
        (slot,) = self.takes
        return {slot: F.normalize(self.features(batch).fused, dim=-1)}


class FuserBound(Bound):
    """What the system fuses, its parts, and the raw inputs of the slots that a linear model can read."""

    system: Fuser

    @property
    def width(self) -> int:
        return self.system.width

    @property
    def part_widths(self) -> dict[str, int]:
        return dict(self.system.part_widths)

    @property
    def raw_widths(self) -> dict[str, int]:
        """Of the slots that a linear model can read as they are."""
        widths = {slot: kind.raw_width(**self.told[slot]) for slot, kind in self.kinds.items() if kind.straight}
        return {slot: width for slot, width in widths.items() if width}

    def features(self, batch: dict) -> Features:
        ready = self.prepared(batch)
        present, out = ready["present"], self.system.fuse(ready)
        seen = visible(ready, present)
        raw, losses = self.raw(ready), out.get("losses")
        return Features(out["fused"], out["parts"], raw, present, out.get("vectors"), seen, losses)


class EmbedderBound(Bound):
    """The vectors side by side, and of several their product, which says how they agree; their numbers are of about
    size one, as those of other features are."""

    system: Embedder

    @property
    def width(self) -> int:
        return self.system.embed_width * (len(self.takes) + (len(self.takes) > 1))

    def features(self, batch: dict) -> Features:
        ready = self.prepared(batch)
        vectors = self.system.embed(ready)
        found = [v * self.system.embed_width**0.5 for v in vectors.values()]
        agree = [torch.stack(found).prod(0)] if len(found) > 1 else []
        return Features(torch.cat([*found, *agree], -1), {}, {}, ready["present"], vectors)

    def vectors(self, batch: dict) -> dict[str, Tensor]:
        return self.system.embed(self.prepared(batch))


class TranscriberBound(Bound):
    """A system that says what it hears."""

    system: Transcriber


class DetectorBound(Bound):
    """A system that finds things in a picture."""

    system: Detector

    def found(self, batch: dict) -> dict:
        """What the system gives of the one slot."""
        ready = self.prepared(batch)
        (slot,) = self.takes
        return self.system.detect(ready[slot], ready["keep"].get(slot))


class GeneratorBound(Bound):
    """A system that writes."""

    system: Generator


class MaskedBound(Bound):
    """A system that guesses what is hidden."""

    system: Masked


class CodecBound(Bound):
    """A system that turns pictures into latents and back."""

    system: Codec


class DiffuserBound(Bound):
    """A system that makes pictures of noise."""

    system: Diffuser


class PolicyBound(Bound):
    """A system that acts."""

    system: Policy


BINDERS: dict[str, type[Bound]] = {
    "backbone": BackboneBound,
    "embedder": EmbedderBound,
    "fuser": FuserBound,
    "transcriber": TranscriberBound,
    "detector": DetectorBound,
    "generator": GeneratorBound,
    "masked": MaskedBound,
    "codec": CodecBound,
    "diffuser": DiffuserBound,
    "policy": PolicyBound,
}


def bind(
    system: Model, role: str, slots: dict[str, dict], mean: Sequence[float] = HALF, std: Sequence[float] = HALF
) -> Bound:
    """`system` bound through `role`, which must be one of its own."""
    return BINDERS[role](system, slots, mean, std)


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
