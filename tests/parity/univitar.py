"""UniViTAR against the numbers that the official code gave (github.com/MM-MVR/UniViTAR), flash attention replaced by
plain products.

univitar.json holds the tokens of three pictures and a clip in one packed row, and of the first picture alone; of the
one published size whose numbers are known some of the packed row's, two layers deep.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.official import as_published
from tests.parity.recorded import loaded, noise, values

SYSTEM = "univitar"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def inputs(patch: int = 8) -> list[Tensor]:
    """Three pictures and a clip of four frames."""
    g = torch.Generator().manual_seed(5)
    sizes = ((3, 4, 4), (3, 2, 5), (3, 3, 1), (4, 3, 2, 3))  # the last two of each in patches
    return [torch.randn(*size, patch * h, patch * w, generator=g) for *size, h, w in sizes]


def published(name: str, facts: dict) -> Row:
    whole = build(name)
    told = f"official, recorded, {facts['depth']} of {len(whole.stack.blocks)} layers"
    row = Row(name, told, count(whole), facts["parameters"], float("inf"), "layers")
    if not as_published(name, facts):
        return row
    ours = plait.create_model(name, depth=facts["depth"]).eval()
    public = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(ours, "official").items()}
    plait.load_weights(ours, public, "official")
    assert [m.eps for m in ours.modules() if isinstance(m, torch.nn.RMSNorm)] == [1e-6] * facts["norms"]
    made = ours.packed(inputs(ours.multiple)).x.flatten()[:: facts["every"]]
    return row._replace(error=relative_error(made, torch.tensor(facts["packed"])))


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return published(name, NUMBERS[size])
    model = loaded(name, "official", NUMBERS["toy"]["keys"], num_classes=0)
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.RMSNorm)} == {1e-6}
    pictures, theirs = inputs(), {k: values(v) for k, v in NUMBERS["outputs"].items()}
    alone = model.tokens(pictures[0][None]).x[0]
    error = max(relative_error(model.packed(pictures).x[0], theirs["packed"]), relative_error(alone, theirs["alone"]))
    return Row(name, "official, recorded", count(model), NUMBERS["toy"]["parameters"], error)
