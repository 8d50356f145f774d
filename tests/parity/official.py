"""Official models of many sizes in little space: what they gave in a small shape, and of each published size a digest
of its keys.

The code was run once with the weights of `recorded.noise` on the pictures of `picture`. A JSON file beside each check
holds for every size the parameter count and a digest of the names and shapes, and the logits of the small runs.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

import plait
from plait.core.catalog import build
from plait.core.weights import State
from tests.parity.compare import Row, count, relative_error
from tests.parity.recorded import noise


def digest(state: State) -> str:
    """Of the names and shapes, in order of the names."""
    lines = "\n".join(f"{name} {tuple(t.shape)}" for name, t in sorted(state.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
def against(system: str, size: str, path: Path) -> Row:
    """The worst output of the runs in `size`; for a size that was not run, whether its names, shapes and count are the
    official ones."""
    numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    facts, name = numbers[size], f"{system}_{size}"
    model = build(name, **facts.get("arguments", {}))
    same = digest(plait.save_weights(model, "official")) == facts["digest"]
    error, runs = 0.0 if same else float("inf"), facts.get("runs", [])
    for run in runs:
        ours = plait.create_model(name, **run["arguments"]).eval()
        state = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(ours, "official").items()}
        plait.load_weights(ours, state, "official")
        out = ours(picture(*run["picture"]))
        error = max(error, relative_error(out, torch.tensor(run["logits"])))
    # what is run of a published size has other arguments than it, but for a toy's
    ran = "keys" if not runs else "output" if size == "toy" else "toy"
    return Row(name, "official, recorded", count(model), facts["parameters"], error, ran)
