"""AutoencoderKL against what diffusers' gave with the published sizes' own shapes: the moments of a picture's latents,
and what is decoded of others."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import plait
from plait.core.catalog import build
from tests.parity.compare import Row, count, relative_error
from tests.parity.official import digest
from tests.parity.recorded import noise

SYSTEM = "autoencoder_kl"
SCALE = 0.18215  # diffusers' scaling_factor
CASES = {"autoencoder_kl_sd_ft_mse": 0.33, "autoencoder_kl_sd_ft_ema": 0.33}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def older(state: dict) -> dict:
    """As the published files call the parts of attention, and hold them."""
    new = ("to_q", "to_k", "to_v", "to_out.0")
    names = dict(zip(new, ("query", "key", "value", "proj_attn")))
    return {next((k.replace(a, b) for a, b in names.items() if f".{a}." in k), k): t for k, t in state.items()}


@torch.no_grad()
def parity(name: str) -> Row:
    model = plait.create_model(name).eval()
    assert model.scale == SCALE
    state = newer(plait.save_weights(model, "diffusers"))
    assert digest(state) == NUMBERS["digest"]
    state = {k: noise(k, tuple(v.shape)) for k, v in state.items()}
    error = 0.0
    for file in (state, older(state)):
        plait.load_weights(model, file, "diffusers")
        mean, log = model.encode(torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(7)))
        decoded = model.decode(torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(8)))
        found = {"mean": mean.flatten(), "log": log.flatten(), "decoded": decoded.flatten()[::41]}
        error = max(error, *(relative_error(x, torch.tensor(NUMBERS[part])) for part, x in found.items()))
    return Row(name, f"diffusers {NUMBERS['diffusers']}, recorded", count(build(name)), NUMBERS["parameters"], error)


def newer(state: dict) -> dict:
    """The other way round."""
    names = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return {next((k.replace(a, b) for a, b in names.items() if f".{a}." in k), k): t for k, t in state.items()}
