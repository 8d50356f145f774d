"""Zipformer against the numbers that icefall gave (github.com/k2-fsa/icefall, egs/librispeech/ASR/zipformer), in eval
mode.

The official code needs k2, so it was run once, in the toy's size, whole and with chunks, and in every published size,
with weights and features that `noise`, `features` and `long` below make again. zipformer.json holds what came out of
the toy for each row alone, and of every published size some of what came out, the number of parameters and a digest of
the keys and shapes of its encoder and stem. `bypass_scale` of each layer, which the official code keeps and never uses,
is counted nowhere (`unused`: how many numbers that is). What makes features of a sound, and the heads, are ours.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import build
from tests.parity.compare import Row, count, relative_error

SYSTEM = "zipformer"
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {f"{SYSTEM}_{size}": "icefall" for size in ("toy", *NUMBERS["sizes"])}


def digest(model: nn.Module) -> str:
    """Of the model's keys and shapes in icefall's layout."""
    shapes = {k: list(v.shape) for k, v in plait.save_weights(model, "icefall").items()}
    return hashlib.sha256("\n".join(f"{k} {s}" for k, s in sorted(shapes.items())).encode()).hexdigest()


def bare(name: str) -> nn.Module:
    """The encoder of a size without its heads, shapes only."""
    return build(name, num_classes=0, labels=0)


def noise(name: str, shape: torch.Size) -> Tensor:
    """The weights of the recorded run: seeded by the key's name, scaled by what the key is."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("bypass_scale"):
        return 0.5 + 0.2 * x
    return 0.3 * x if x.dim() < 2 or name.endswith(("conv_scale", "log_scale")) else x / x[0].numel() ** 0.5


def official(run: str) -> nn.Module:
    """Our toy with the recorded weights, whole or with chunks."""
    numbers = NUMBERS["runs"][run]
    return filled("zipformer_toy", **{k: numbers[k] for k in ("chunk", "left") if k in numbers})


def filled(name: str, **chunks) -> nn.Module:
    """Our size with the recorded weights."""
    model = plait.create_model(name, num_classes=0, labels=0, **chunks).eval()
    state = {k: noise(k, v.shape) for k, v in plait.save_weights(model, "icefall").items()}
    return plait.load_weights(model, state, "icefall")


def features() -> tuple[Tensor, Tensor]:
    """Three rows of 40 mels (3, 61, 40), and which frames are real: 61, 48 and 34 of them."""
    x = torch.randn(3, 61, 40, generator=torch.Generator().manual_seed(7))
    return x, torch.arange(61) < torch.tensor(NUMBERS["lengths"])[:, None]


def long() -> Tensor:
    """Frames of 80 mels (1, 615, 80), which are several chunks and what they see of those before."""
    return torch.randn(1, 615, 80, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def comparisons() -> Iterator[tuple[str, Tensor, Tensor]]:
    """(what, ours, theirs): each row in a ragged batch, and alone, against the row alone."""
    x, keep = features()
    for run, numbers in NUMBERS["runs"].items():
        model = official(run)
        t = model.encode(x.masked_fill(~keep[..., None], 0.5), keep)
        for i, row in enumerate(numbers["rows"]):
            theirs = torch.tensor(row["values"]).view(row["shape"])
            yield f"{run} {i} in a batch", t.x[i][t.keep[i]], theirs
            yield f"{run} {i} alone", model.encode(x[i : i + 1, : NUMBERS["lengths"][i]]).x[0], theirs


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) == "toy":
        error = max(relative_error(ours, theirs) for _, ours, theirs in comparisons())
        return Row(name, "icefall, recorded", count(bare(name)), NUMBERS["runs"]["toy"]["parameters"], error)
    facts, model, error = NUMBERS["sizes"][size], bare(name), float("inf")
    if digest(model) == facts["digest"]:
        made = filled(name).encode(long()).x
        error = relative_error(made.flatten()[::997], torch.tensor(facts["values"]))
    return Row(name, "icefall, recorded", count(model), facts["parameters"], error)
