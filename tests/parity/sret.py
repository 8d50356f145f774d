"""SReT against the numbers of the official code (github.com/szq0214/SReT, SReT.py, and SReT_wo_slice.py without
slices).

Where it draws the order of the tokens in evaluation too, it was given the order in which `dealt` lays them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import nn

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.official import digest, picture
from tests.parity.recorded import noise

SYSTEM = "sret"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def first(key: str) -> str:
    """The name of a block's tensor in its first loop."""
    return re.sub(r"(?<=blocks\.)\d+", lambda m: str(int(m[0]) - 2 * (int(m[0]) % 4 == 2)), key)


def filled(name: str, arguments: dict) -> nn.Module:
    """Ours with the weights of the recorded runs."""
    ours = plait.create_model(name, **arguments).eval()
    state = {k: noise(first(k), tuple(v.shape)) for k, v in plait.save_weights(ours, "official").items()}
    return plait.load_weights(ours, state, "official")


@torch.no_grad()
def parity(name: str) -> Row:
    facts, model = NUMBERS[name.removeprefix(f"{SYSTEM}_")], build(name)
    error = 0.0 if digest(plait.save_weights(model, "official")) == facts["digest"] else float("inf")
    for run in facts.get("runs", []):
        out = filled(name, run["arguments"])(picture(*run["picture"]))
        error = max(error, relative_error(out, torch.tensor(run["logits"])))
    ran = "output" if facts.get("runs") else "keys"
    return Row(name, "official, recorded", count(model), facts["parameters"], error, ran)


@torch.no_grad()
def drawn() -> float:
    """The error in training, where both draw the same order from the same seed and norms follow the batch."""
    run = NUMBERS["toy"]["drawn"]
    model = filled("sret_toy", dict(drop_path=0.0)).train()
    torch.manual_seed(run["seed"])
    return relative_error(model(picture(*run["picture"])), torch.tensor(run["logits"]))
