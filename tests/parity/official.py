"""Official models of many sizes in little space: of each size a digest of its keys, how many norms use which eps, and
what it gave with a few of its layers.

The code was run once with the weights of `recorded.noise` on the pictures of `picture`. A JSON file beside each check
holds for every size the parameter count, the digest of the names and shapes and the eps, all three of the whole model,
and of each run some of the logits, with the arguments that were not the size's own: how deep it was.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import ModelInfo, build, model_info
from plait.core.weights import State
from tests.parity.compare import Row, count, relative_error
from tests.parity.recorded import noise


def digest(state: State) -> str:
    """Of the names and shapes, in order of the names."""
    lines = "\n".join(f"{name} {tuple(t.shape)}" for name, t in sorted(state.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def epsilons(model: nn.Module) -> dict[str, int]:
    """How many norms, of whatever kind, use each eps."""
    found = Counter(str(m.eps) for m in model.modules() if isinstance(getattr(m, "eps", None), float))
    return dict(sorted(found.items()))


def layers(info: ModelInfo, runs: list[dict]) -> tuple[str, str]:
    """What was run of a size, as `Row.ran` says it, and in how many of its layers."""
    given = {key: value for run in runs for key, value in run["arguments"].items()}
    if info.size == "toy" or not given:
        return "output" if runs else "keys", ""
    if not given.keys() <= {"depth", "depths"}:
        return "toy", ""
    few, whole = (
        sum(sum(d) if isinstance(d, (list, tuple)) else d for d in depths)
        for depths in (given.values(), [info.arguments[key] for key in given])
    )
    return "layers", f", {few} of {whole} layers"


@torch.no_grad()
def against(system: str, size: str, path: Path) -> Row:
    """The worst output of the runs in `size`; infinite where names, shapes or eps of the whole are not the official
    ones."""
    numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    facts, info = numbers[size], model_info(f"{system}_{size}")
    model = build(info.name, **facts.get("arguments", {}))
    same = digest(plait.save_weights(model, "official")) == facts["digest"]
    same = same and facts.get("eps") in (None, epsilons(model))
    error, runs = 0.0 if same else float("inf"), facts.get("runs", [])
    for run in runs:
        ours = plait.create_model(info.name, **run["arguments"]).eval()
        state = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(ours, "official").items()}
        plait.load_weights(ours, state, "official")
        want = torch.tensor(run["logits"])
        out = ours(picture(*run["picture"])[: len(want)])[:, :: run.get("every", 1)]
        error = max(error, relative_error(out, want))
    ran, told = layers(info, runs)
    return Row(info.name, f"official, recorded{told}", count(model), facts["parameters"], error, ran)
