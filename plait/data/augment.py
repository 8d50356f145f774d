"""Small random changes to training batches, all rows at once, the same for the same generator."""

from __future__ import annotations

import torch

from plait.data.kinds import KINDS
from plait.data.schema import Schema
from plait.errors import PlaitError


def augment(
    batch: dict, schema: Schema, generator: torch.Generator, strength: float = 1.0, *, whole: bool = False
) -> dict:
    """A changed copy of a batch; the tensors of the given one stay as they are.

    Pictures are shifted, scaled, stretched, turned, recoloured and partly erased (and mirrored if larger than 64 pixels
    both ways); sounds are shifted, made louder or softer, and get noise; a few tokens of texts become [MASK] (or
    [UNK]). Blanks stay blanks, and `keep` and `present` stay true. `strength` 0 changes nothing, 1 is usual.

    Args:
        generator: on the CPU; it alone decides what happens.
        whole: sounds are not shifted, so that nothing said at either end is lost, and pictures only moved; a target
        picture is moved with them.
    """
    if strength < 0:
        raise PlaitError(f"strength must be >= 0, got {strength}.")
    out, moved = dict(batch), {}
    if strength == 0:
        return out
    for slot in schema.slots:
        if slot.name not in batch:
            continue
        kind, x, keep = KINDS[slot.kind], batch[slot.name], batch["keep"].get(slot.name)
        changed, change = kind.augment(x, keep, schema.shape(slot.name), generator, strength, whole)
        if changed is not x and keep is None:
            changed = changed * batch["present"][slot.name].view(-1, *[1] * (x.dim() - 1))
        out[slot.name] = changed
        if change is not None:
            moved.setdefault(slot.kind, change)
    if "negative" in batch:
        out["negative"] = augment(batch["negative"], schema, generator, strength, whole=whole)
    for slot in schema.asked if "target" in batch else ():
        kind, name = KINDS[slot.kind], slot.columns[0]
        for change in (moved[k] for k in kind.follows if k in moved):
            out["target"] = out["target"] | {name: kind.follow(out["target"][name], change)}
    return out
