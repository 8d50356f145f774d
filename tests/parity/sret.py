"""SReT against the numbers of the official code (github.com/szq0214/SReT, SReT.py, and SReT_wo_slice.py without
slices).

Where it draws the order of the tokens in evaluation too, it was given the order in which `dealt` lays them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from plait.core.catalog import systems
from tests.parity.compare import Row, relative_error
from tests.parity.official import against, filled, picture
from tests.parity.recorded import noise

SYSTEM = "sret"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = Path(__file__).with_suffix(".json")


def first(key: str) -> str:
    """The name of a block's tensor in its first loop."""
    return re.sub(r"(?<=blocks\.)\d+", lambda m: str(int(m[0]) - 2 * (int(m[0]) % 4 == 2)), key)


def looped(name: str, shape: tuple[int, ...]) -> Tensor:
    return noise(first(name), shape)


def parity(name: str) -> Row:
    return against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), NUMBERS, looped)


@torch.no_grad()
def drawn() -> float:
    """The error in training, where both draw the same order from the same seed and norms follow the batch."""
    run = json.loads(NUMBERS.read_text(encoding="utf-8"))["toy"]["drawn"]
    model = filled("sret_toy", dict(arguments=dict(drop_path=0.0)), looped).train()
    torch.manual_seed(run["seed"])
    return relative_error(model(picture(*run["picture"])), torch.tensor(run["logits"]))
