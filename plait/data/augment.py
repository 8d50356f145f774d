"""Small random changes to training batches, all rows at once, the same for the same generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from plait.data.schema import Schema

PHOTO = 64  # pictures with both sides above this may be mirrored; glyphs and diagrams mean something else in the mirror


def augment(
    batch: dict, schema: Schema, generator: torch.Generator, strength: float = 1.0, *, whole: bool = False
) -> dict:
    """A changed copy of a batch; the tensors of the given one stay as they are.

    Pictures are shifted, scaled, stretched, turned, recoloured and partly erased (and mirrored if larger than 64 pixels
    both ways); sounds are shifted, made louder or softer, and get noise; a few tokens of texts become [MASK] (or
    [UNK]). Blanks stay blanks, and `keep` and `present` stay true. `strength` 0 changes nothing, 1 is usual.

    Args:
        generator: on the CPU; it alone decides what happens.
        whole: sounds are not shifted, so that nothing said at either end is lost.
    """
    if strength < 0:
        raise ValueError(f"strength must be >= 0, got {strength}.")
    out = dict(batch)
    if strength == 0:
        return out
    for slot in schema.slots:
        if slot.name not in batch:
            continue
        x, present = batch[slot.name], batch["present"][slot.name]
        if slot.kind == "image":
            out[slot.name] = (
                augment_images(x, generator, strength, mirror=min(x.shape[-2:]) > PHOTO) * present[:, None, None, None]
            )
        elif slot.kind == "audio":
            out[slot.name] = augment_sounds(
                x, batch["keep"][slot.name], generator, strength, shift=0.0 if whole else 0.05
            )
        elif slot.kind == "text":
            out[slot.name] = drop_tokens(x, batch["keep"][slot.name], schema.shape(slot.name), generator, strength)
    return out


def augment_images(x: torch.Tensor, generator: torch.Generator, strength: float, mirror: bool) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> the same shape and range."""
    b, _, h, w = x.shape

    def spread(*shape: int) -> torch.Tensor:  # uniform in [-1, 1]
        return (2 * torch.rand(shape, generator=generator) - 1).to(x)

    angle = spread(b) * math.radians(10) * strength
    zoom = torch.exp(spread(b) * 0.12 * strength)
    stretch = torch.exp(spread(b) * 0.1 * strength)  # wider and lower, or the reverse
    shift = spread(b, 2) * 0.08 * strength
    flip = torch.where(spread(b) < 0, -1.0, 1.0) if mirror else torch.ones_like(angle)
    cos, sin, aspect = torch.cos(angle) / zoom, torch.sin(angle) / zoom, h / w
    across = torch.stack([cos * flip, -sin * aspect], 1) / stretch[:, None]
    down = torch.stack([sin / aspect * flip, cos], 1) * stretch[:, None]
    rows = [torch.cat([across, shift[:, :1]], 1), torch.cat([down, shift[:, 1:]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    contrast = 1 + 0.2 * strength * spread(b, 1, 1, 1)
    bright = 0.15 * strength * spread(b, 1, 1, 1)
    tint = 0.05 * strength * spread(b, 3, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean + bright + tint).clamp(0, 1)
    middle, side = (spread(b, 2) + 1) / 2, (spread(b, 2) + 1) * 0.125  # as shares of H and W
    erased = (spread(b) + 1) / 2 < min(0.25 * strength, 0.5)
    ys = (torch.arange(h).to(x) + 0.5) / h
    xs = (torch.arange(w).to(x) + 0.5) / w
    # (B, H, W)
    within = ((ys - middle[:, :1]).abs() < side[:, :1])[:, :, None] & ((xs - middle[:, 1:]).abs() < side[:, 1:])[
        :, None, :
    ]
    return torch.where((within & erased[:, None, None])[:, None], 0.5, x)


def augment_sounds(
    x: torch.Tensor, keep: torch.Tensor, generator: torch.Generator, strength: float, shift: float = 0.05
) -> torch.Tensor:
    """(B, S) in [-1, 1] -> the same shape and range; what is shifted in is silence, and nothing is written into the
    padding.

    shift: the largest share of its length that a sound is moved at strength 1."""
    b, s = x.shape
    spread = (2 * torch.rand((b, 2), generator=generator) - 1).to(x)
    noise = torch.randn((b, s), generator=generator).to(x)
    level = torch.rand((b, 1), generator=generator).to(x)
    length = keep.sum(1)
    away = (spread[:, 0] * shift * strength * length).round().to(torch.int64)
    source = torch.arange(s, device=x.device)[None, :] - away[:, None]  # (B, S)
    real = (source >= 0) & (source < length[:, None])
    moved = torch.where(real, x.gather(1, source.clamp(0, s - 1)), 0.0)
    loud = (moved.square().sum(1, keepdim=True) / length.clamp(min=1)[:, None]).sqrt()
    changed = moved * torch.exp(0.4 * strength * spread[:, 1:]) + 0.05 * strength * level * loud * noise
    return torch.where(keep, changed, 0.0).clamp(-1, 1)


def drop_tokens(
    x: torch.Tensor, keep: torch.Tensor, shape: dict, generator: torch.Generator, strength: float
) -> torch.Tensor:
    """(B, N) ids -> a tenth of the ordinary tokens become [MASK], or [UNK] where the tokenizer has no mask."""
    blank = shape["mask"] if shape["mask"] is not None else shape["unk"]
    if blank is None:
        return x
    ordinary = keep
    for special in (shape["pad"], shape["cls"], shape["sep"]):
        if special is not None:
            ordinary = ordinary & (x != special)
    chosen = (torch.rand(x.shape, generator=generator) < min(0.1 * strength, 0.5)).to(x.device)
    return torch.where(chosen & ordinary, blank, x)
