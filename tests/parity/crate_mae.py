"""CRATE-MAE against the numbers that the official code gave (github.com/Ma-Lab-Berkeley/CRATE), run once with weights
that `recorded.noise` makes again from names.

Of every size: the encoder's class token on a whole picture; and with three quarters of the patches hidden, by drawn
numbers that are made again, what the decoder paints everywhere, and each row's error where it was hidden. The largest
is compared with two layers of each half. The layer and tables that nothing reads are in no count.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import scales
from tests.parity.official import as_published
from tests.parity.recorded import noise

SYSTEM = "crate_mae"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@torch.no_grad()
def parity(name: str) -> Row:
    size = name.removeprefix(f"{SYSTEM}_")
    facts = NUMBERS[size]
    fewer = {"depth": facts["depth"], "undo": facts["depth"]} if "depth" in facts else {}
    ours = plait.create_model(name, **fewer).eval()
    told = "official, recorded" + (", 4 of 48 layers" if fewer else "")
    whole = ours if size == "toy" else build(name)
    row = Row(name, told, count(whole), facts["parameters"], float("inf"), "layers" if fewer else "output")
    if size != "toy" and not as_published(name, facts):
        return row
    state = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(ours, "official").items()}
    plait.load_weights(ours, state, "official")
    side = facts["side"]
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    n = ours.places({"image": x})["image"]
    luck = torch.rand(2, n, generator=torch.Generator().manual_seed(n))
    costs = ours.guess({"image": x}, {"image": luck})["costs"]["pixels"]
    painted = {}
    hook = ours.pixels.register_forward_hook(lambda _, __, made: painted.update(made=made[:, 1:]))
    ours.guess({"image": x}, {"image": luck})
    hook.remove()
    pairs = {
        "rows": costs,
        "pooled": ours.pool(ours.tokens(x)).flatten()[::7],
        "pixels": painted["made"].flatten()[:: 97 if size == "toy" else 4001],
    }
    assert scales(ours) == facts["norms"]
    return row._replace(error=max(relative_error(v, torch.tensor(facts[k])) for k, v in pairs.items()))
