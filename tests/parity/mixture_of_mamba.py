"""Mixture-of-Mamba's mixer against the numbers that the official code gave (github.com/Weixin-Liang/Mixture-of-Mamba).

Its scan, a CUDA kernel, was replaced by the recurrence itself. mixture_of_mamba.json holds the keys and shapes of its
mixer for three modalities and of its dense one, what both made of one sequence, and of each width of the paper the
number of parameters of a mixer and what a layer of two made, put together as its example has them. Nothing around the
layers was published.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

import plait
from plait.core.catalog import build, model_info
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.core.weights import Rename, convert, load_strict
from plait.parts.mixers.mamba import layout
from plait.systems.unified.mixture_of_mamba import NAMES, MambaMixture
from tests.parity.compare import Row, count, relative_error
from tests.parity.official import digest
from tests.parity.recorded import noise, values, weights

SYSTEM, CUTS = "mixture_of_mamba", True
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *NUMBERS["sizes"])}
FEW = {"text": dict(kind="text", vocab=64)}  # words, which the layers know nothing of
SHARED = [Rename("conv1d.{p}", "conv.{p}"), Rename("A_log", "rates"), Rename("D", "skip")]
MIXTURE = [*SHARED, *(Rename(f"{public}.{{k}}.{{p}}", f"{ours}.experts.{{k}}.{{p}}") for ours, public in NAMES.items())]
DENSE = [
    *SHARED,
    *(
        Rename(f"{public.removeprefix('local_experts_')}.{{p}}", f"{ours}.experts.0.{{p}}")
        for ours, public in NAMES.items()
    ),
]


def inputs(width: int = 32) -> tuple[Tensor, Tensor]:
    """Two sequences of 20 tokens, x (2, 20, D), and of which of three modalities each token is (2, 20)."""
    g = torch.Generator().manual_seed(5)
    return torch.randn(2, 20, width, generator=g), torch.randint(0, 3, (2, 20), generator=g)


def official(which: str) -> MambaMixture:
    """Ours with the recorded weights: "mixture" or "dense"."""
    toy = build("mixture_of_mamba_toy")
    with torch.device("meta"):
        model = MambaMixture(toy.width, 3 if which == "mixture" else 1, size=toy.stack.blocks[0].mix.f.size)
    load_strict(initialise(model), convert(weights(NUMBERS[which]["keys"]), MIXTURE if which == "mixture" else DENSE))
    return model.eval()


@torch.no_grad()
def layer(name: str) -> Row:
    """Of a size of the paper: its first layer."""
    facts, slots = NUMBERS["sizes"][name.removeprefix(f"{SYSTEM}_")], model_info(name).arguments["slots"]
    model, depth = plait.create_model(name, depth=1, slots=slots | FEW), len(build(name).stack.blocks)
    public = plait.save_weights(model, "official")
    public |= {k: noise(k, tuple(v.shape)) for k, v in public.items() if k.startswith("layers.")}
    plait.load_weights(model, public, "official")
    same = digest({k: v for k, v in public.items() if k.startswith("layers.")}) == facts["digest"]
    x, kinds = inputs(model.width)
    made = model.stack(Tokens(x).reading(layout=layout(kinds, None))).x.flatten()[::397]
    error = relative_error(made, torch.tensor(facts["output"])) if same else float("inf")
    told = f"official mixers, recorded, 1 of {depth} layers"
    return Row(name, told, count(model.stack), facts["parameters"], error, "layers")


@torch.no_grad()
def parity(name: str) -> Row:
    if name != "mixture_of_mamba_toy":
        return layer(name)
    (x, kinds), keep, errors = inputs(), torch.ones(2, 20, dtype=torch.bool), []
    for which in ("mixture", "dense"):
        model = official(which)
        for mask in (None, keep):
            given = layout(kinds * (which == "mixture"), mask)
            y = model(Tokens(x, mask).reading(layout=given)).x
            errors.append(relative_error(y, values(NUMBERS[which]["output"])))
    return Row(
        name, "official mixer, recorded", count(official("mixture")), NUMBERS["mixture"]["parameters"], max(errors)
    )


def widths() -> dict[int, tuple[int, int]]:
    """Of each published width: parameters of one of our mixers for three modalities, and of the official one."""
    found = {}
    for size in NUMBERS["widths"]:
        width = model_info(f"mixture_of_mamba_{size}").arguments["width"]
        with torch.device("meta"):
            found[size] = count(MambaMixture(width, 3)), NUMBERS["widths"][size]
    return found
