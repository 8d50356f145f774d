"""Official models of many sizes in little space: of each size a digest of its keys, and what it gave, whole or with a
few of its layers.

The code was run once with the weights of `recorded.noise` on the pictures of `picture`. A JSON file beside each check
holds for every size the parameter count and the digest of the names and shapes, both of the whole model, and of each
run some of the logits and how many norms have which eps, with the arguments that were not the size's own: how deep it
was.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.block import Layer
from plait.core.catalog import build
from plait.core.weights import State
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import scales
from tests.parity.recorded import learned, noise

Draw = Callable[[str, tuple[int, ...]], Tensor]


def digest(state: State) -> str:
    """Of the names and shapes, in order of the names."""
    lines = "\n".join(f"{name} {tuple(t.shape)}" for name, t in sorted(state.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


@torch.no_grad()
def against(system: str, size: str, path: Path, draw: Draw = noise, source: str = "official") -> Row:
    """The worst output of the runs in `size`; for a size that was not run, whether its names, shapes and count are the
    official ones. draw: the tensor of a name and a shape; source: the layout of the weights."""
    numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    facts, name = numbers[size], f"{system}_{size}"
    model = build(name, **facts.get("arguments", {}))
    public, runs, told = plait.save_weights(model, source), facts.get("runs", []), "official, recorded"
    if digest(public) != facts["digest"]:
        return Row(name, told, count(model), facts["parameters"], float("inf"), "keys")
    ran, error = "output" if runs else "keys", 0.0
    for run in runs:
        ours = filled(name, run, draw, source)
        error = max(error, apart(ours, run))
        if size != "toy" and ran != "toy":
            cut, whole = layers(ours), layers(model)
            full = kinds(plait.save_weights(build(name, **run["arguments"]), source)) <= kinds(public)
            ran = "toy" if not full else "output" if cut == whole else "layers"
            told = told if ran != "layers" else f"official, recorded, {cut} of {whole} layers"
    return Row(name, told, count(model), facts["parameters"], error, ran)


def as_published(name: str, facts: dict, source: str = "official") -> bool:
    """Whether a size has the recorded names, shapes and number of parameters."""
    model = build(name)
    return count(model) == facts["parameters"] and digest(plait.save_weights(model, source)) == facts["digest"]


def filled(name: str, run: dict, draw: Draw = noise, source: str = "official") -> nn.Module:
    """Ours with the weights of a recorded run; tables that it `kept` are made by either model."""
    ours = plait.create_model(name, **run["arguments"]).eval()
    kept, public = run.get("kept", ()), plait.save_weights(ours, source)
    state = {k: v if k in kept else gain(k, run) * draw(k, tuple(v.shape)) for k, v in public.items()}
    return plait.load_weights(ours, state, source)


def gain(name: str, run: dict) -> float:
    """By how much the tensor of this name was larger than its noise in a run: where something had to weigh enough in
    the answer for the run to notice it."""
    return math.prod(by for pattern, by in run.get("gains", {}).items() if re.search(pattern, name))


def apart(ours: nn.Module, run: dict) -> float:
    """The error of the logits of which a run keeps each `every`-th; infinite where norms have another eps."""
    if "norms" in run and scales(ours) != run["norms"]:
        return float("inf")
    want = torch.tensor(run["logits"]).flatten()
    made = ours(picture(*run["picture"])).flatten()[:: run.get("every", 1)]
    return relative_error(made[: len(want)], want)


def kinds(state: State) -> set[tuple[str, tuple[int, ...]]]:
    """The names, without the numbers of layers, and shapes of a state dict."""
    return {(re.sub(r"\d+", "*", name), shape) for name, shape in learned(state).items()}


def layers(model: nn.Module) -> int:
    return sum(isinstance(m, Layer) for m in model.modules())
