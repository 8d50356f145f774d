"""Inputs for every system's toy, made from what the model says it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import System, systems

SYSTEMS = list(systems().values())


def toy(system: System, seed: int = 0) -> nn.Module:
    return plait.create_model(f"{system.name}_toy", seed=seed)


SLOTS = {slot: spec for s in SYSTEMS for slot, spec in s.sizes["toy"].get("slots", {}).items()}


def kind(slot: str) -> str:
    """The kind of a toy's slot, as its system says; a system without slots of its own calls them by their kind, and
    several of one by their number too."""
    return SLOTS[slot]["kind"] if slot in SLOTS else slot.rstrip("0123456789").rstrip("_")


def channels(model: nn.Module, slot: str) -> int:
    """Of the steps of a series: as what stands in the place of an absent one, or as the system's toy says."""
    blank = getattr(model, "blanks", {}).get(slot)
    return SLOTS[slot]["channels"] if blank is None else blank[0][-1]


def example(model: nn.Module, rows: int = 3, seed: int = 0) -> dict:
    """A full batch. Toys read 32 x 32 pictures, 12 token ids under 64, 1600 samples, 4 numbers, 3 categories under 5,
    vectors of 6, series of 24 steps, clouds of 48 points."""
    g = torch.Generator().manual_seed(seed)
    make = {
        "image": lambda _: torch.rand(rows, 3, 32, 32, generator=g),
        "text": lambda _: torch.randint(5, 64, (rows, 12), generator=g),
        "audio": lambda _: 0.1 * torch.randn(rows, 1600, generator=g),
        "number": lambda _: torch.randn(rows, 4, generator=g),
        "category": lambda _: torch.randint(1, 5, (rows, 3), generator=g),
        "vector": lambda _: torch.randn(rows, 6, generator=g),
        "points": lambda _: torch.rand(rows, 48, 3, generator=g) * 2 - 1,
        "series": lambda slot: torch.randn(rows, 24, channels(model, slot), generator=g),
    }
    batch: dict = {slot: make[kind(slot)](slot) for slot in model.takes}
    batch["keep"] = {
        s: torch.ones(batch[s].shape[:2], dtype=torch.bool) for s in model.takes if kind(s) not in ("image", "vector")
    }
    batch["present"] = {s: torch.ones(rows, dtype=torch.bool) for s in model.takes}
    if hasattr(model, "sample"):  # what is denoised
        batch["noisy"], batch["time"] = torch.randn(rows, *model.sample, generator=g), torch.linspace(0, 900, rows)
    for slot, keep in batch["keep"].items():  # ragged rows: the last one is a third shorter
        cut = keep.shape[1] - keep.shape[1] // 3
        keep[-1, cut:] = False
        batch[slot][-1, cut:] = 0
    return batch


def run(model: nn.Module, batch: dict, system: System) -> dict[str, Tensor]:
    """All float outputs of the model's public methods, flattened to {name: tensor with B first}."""
    out: dict = {}
    if len(model.takes) == 1:
        (slot,) = model.takes
        keep = batch["keep"].get(slot)
        flatten("logits", model(batch[slot], keep), out)
        if hasattr(model, "pool"):
            out["pooled"] = model.pool(model.tokens(batch[slot], keep))
    else:
        flatten("forward", model(batch), out)
    if "embedder" in system.roles:
        flatten("embed", model.embed(batch), out)
    if "fuser" in system.roles:
        flatten("fuse", model.fuse(batch), out)
    if "masked" in system.roles:
        luck = {slot: torch.linspace(0, 1, n)[torch.arange(n) * 7 % n] for slot, n in model.places(batch).items()}
        rows = next(batch[slot].shape[0] for slot in model.takes if slot in batch)
        told = model.guess(batch, {slot: x.expand(rows, -1) for slot, x in luck.items()})
        none = {n: {k: v.nan_to_num(0.0) for k, v in costs.items()} for n, costs in told.items()}  # NaN: a row has none
        flatten("guess", none, out)
    if "codec" in system.roles:
        out["latents"], out["spread"] = model.encode(batch["image"])
    if "generator" in system.roles:
        rows = next(batch[slot].shape[0] for slot in model.takes if slot in batch)
        out["written"] = model.step(torch.arange(7, 57, 10).expand(rows, -1), model.prefill(batch))[0]
    return out


def flatten(prefix: str, value, out: dict) -> None:
    if isinstance(value, dict):
        for k, v in value.items():
            flatten(f"{prefix}.{k}", v, out)
    elif isinstance(value, Tensor) and value.is_floating_point():
        out[prefix] = value


def gradients(module, out):
    """Of every parameter, of a number in which all outputs have a say; None where it has none."""
    g = torch.Generator().manual_seed(0)
    total = sum((v * torch.randn(v.shape, generator=g)).sum() for v in out.values() if v.requires_grad)
    named = {n.removeprefix("model."): p for n, p in module.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(total, list(named.values()), allow_unused=True)))


def same_gradients(mine, truth):
    assert mine.keys() == truth.keys()
    # some are zero but for rounding, such as that of a number added to all scores: those of others are the scale
    least = 1e-2 * max(float(g.abs().max()) for g in truth.values() if g is not None)
    for name, want in truth.items():
        assert (mine[name] is None) == (want is None), name
        if want is not None:
            scale = max(least, float(want.abs().max()))
            assert float((mine[name] - want).abs().max()) <= 1e-4 * scale, name
