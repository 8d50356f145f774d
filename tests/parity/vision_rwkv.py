"""Vision-RWKV against the numbers of the official code (github.com/OpenGVLab/Vision-RWKV), its CUDA kernel replaced by
the definition.

vision_rwkv.json holds both arrangements of norms in the toy's size, read at two picture sizes, and of every published
size the keys and some of the logits.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from plait.core.catalog import systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.official import against
from tests.parity.recorded import loaded, values

SYSTEM = "vision_rwkv"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
BEFORE = dict(scale=None, norm=False, hidden=0)  # the arrangement of the tiny size


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return against(SYSTEM, size, Path(__file__))
    g = torch.Generator().manual_seed(5)
    pictures, error = [torch.randn(2, 3, *size, generator=g) for size in ((32, 32), (64, 40))], 0.0
    for which, arguments in (("toy_before", BEFORE), ("toy", {})):
        model = loaded(name, "official", NUMBERS[which]["keys"], **arguments)
        for x, theirs in zip(pictures, NUMBERS[which]["outputs"], strict=True):
            error = max(error, relative_error(model(x), values(theirs)))
    return Row(name, "official, recorded", count(model), NUMBERS["toy"]["parameters"], error)
