"""UniViTAR against the numbers that the official code gave (github.com/MM-MVR/UniViTAR), flash attention replaced by
plain products.

univitar.json holds the tokens of three pictures and a clip in one packed row, and of the first picture alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from tests.parity.compare import Row, count, relative_error
from tests.parity.recorded import loaded, values

SYSTEM = "univitar"
CASES = {"univitar_toy": "official"}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def inputs() -> list[Tensor]:
    """Three pictures and a clip of four frames."""
    g = torch.Generator().manual_seed(5)
    return [torch.randn(3, h, w, generator=g) for h, w in ((32, 32), (16, 40), (24, 8))] + [
        torch.randn(4, 3, 16, 24, generator=g)
    ]


@torch.no_grad()
def parity(name: str) -> Row:
    model = loaded(name, "official", NUMBERS["toy"]["keys"], num_classes=0)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.RMSNorm)} == {1e-6}
    pictures, theirs = inputs(), {k: values(v) for k, v in NUMBERS["outputs"].items()}
    alone = model.tokens(pictures[0][None]).x[0]
    error = max(relative_error(model.packed(pictures).x[0], theirs["packed"]), relative_error(alone, theirs["alone"]))
    return Row(name, "official, recorded", count(model), NUMBERS["toy"]["parameters"], error)
