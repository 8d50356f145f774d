"""CRATE against the numbers that the official code gave (github.com/Ma-Lab-Berkeley/CRATE), every published size
whole."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from plait.core.catalog import systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.official import against
from tests.parity.recorded import loaded, values

SYSTEM = "crate"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return against(SYSTEM, size, Path(__file__))
    model = loaded(name, "official", NUMBERS["toy"]["keys"])
    assert set(epsilons(model)) == {1e-5}
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    error = relative_error(model(x), values(NUMBERS["outputs"]["logits"]))
    return Row(name, "official, recorded", count(model), NUMBERS["toy"]["parameters"], error)
