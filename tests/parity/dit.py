"""DiT against the numbers that the official code gave (github.com/facebookresearch/DiT): each size in its own width,
two layers deep, and the names, shapes and count of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import build
from tests.parity.compare import Row, count, relative_error
from tests.parity.official import digest
from tests.parity.recorded import noise

SYSTEM = "dit"
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SIZES = ("s_8", "s_4", "s_2", "b_8", "b_4", "b_2", "l_8", "l_4", "l_2", "xl_8", "xl_4", "xl_2", "xl_2_512")
CASES = {f"dit_{size}": 4e-9 * NUMBERS["sizes"][size]["parameters"] for size in SIZES}


def filled(model: nn.Module) -> nn.Module:
    """The weights that the official model had."""
    state = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(model, "official").items()}
    return plait.load_weights(model, state, "official").eval()


def inputs(side: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and ids (of which the last asks for nothing)."""
    x = torch.randn(3, 4, side, side, generator=torch.Generator().manual_seed(side))
    return x, torch.tensor([0, 37, 981]), torch.tensor([1, classes // 2 + 1, 0])


@torch.no_grad()
def parity(name: str) -> Row:
    facts, whole = NUMBERS["sizes"][name.removeprefix("dit_")], build(name)
    assert digest(plait.save_weights(whole.denoiser, "official")) == facts["digest"]
    side = 64 if name.endswith("512") else 32  # of the latents
    assert (whole.sample, whole.predicts) == ((4, side, side), "noise")
    model = filled(plait.create_model(name, depth=2).denoiser)
    x, time, ids = inputs(whole.sample[1], 1000)
    made = model(x, time, model.labels[0](ids)).flatten()[::97]
    error = relative_error(made, torch.tensor(facts["output"]))
    return Row(name, "official, recorded, two layers", count(whole.denoiser), facts["parameters"], error, "layers")
