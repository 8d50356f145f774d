"""ResFormer against the numbers that the official code gave (github.com/ruitian12/resformer): the published sizes'
logits, and the toy's at three resolutions with its loss."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from plait.systems.vision.resformer import losses
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.official import against
from tests.parity.recorded import loaded, values

SYSTEM = "resformer"
PUBLISHED = ("tiny_patch16", "small_patch16", "base_patch16")
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *PUBLISHED)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return against(SYSTEM, size, Path(__file__))
    model = loaded(name, "official", NUMBERS["toy"]["keys"])
    assert set(epsilons(model)) == {1e-6}
    pictures = {n: torch.randn(3, 3, n, n, generator=torch.Generator().manual_seed(n)) for n in (80, 48, 32)}
    theirs = NUMBERS["outputs"]
    error = max(relative_error(model(x), values(theirs[str(n)])) for n, x in pictures.items())
    loss = sum(losses(model, list(pictures.values()), torch.tensor([1, 7, 3])).values())
    error = max(error, abs(float(loss) / theirs["loss"] - 1))
    return Row(name, "official, recorded", count(model), NUMBERS["toy"]["parameters"], error)
