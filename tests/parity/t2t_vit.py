"""T2T-ViT against the numbers that the official code gave (github.com/yitu-opensource/T2T-ViT): both kinds of thin
layers, both scales; every published size whole, scaled as its file wants it.

There the Performer's projections were a quarter of what is drawn elsewhere: its features fall with the exponential of
what they project, and would all have been zero.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, relative_error
from tests.parity.norms import epsilons
from tests.parity.official import against
from tests.parity.recorded import values, weights

SYSTEM = "t2t_vit"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SHAPE = dict(image=(48, 48), width=128, hidden=256)


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return against(SYSTEM, size, Path(__file__), source=plait.model_info(name).weights["source"])
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(9))
    error = 0.0
    for kind in ("transformer", "performer"):
        model = plait.create_model(name, **SHAPE, exact=kind == "transformer").eval()
        assert set(epsilons(model)) == {1e-5}
        public = weights(NUMBERS[f"toy_{kind}"]["keys"]) | {"pos_embed": model.positions.table.clone()}
        # random features of the size that they have
        public = {k: 3 * v if k.endswith(".w") else v for k, v in public.items()}
        for source, suffix in (("official", ""), ("published", "_scaled")):
            plait.load_weights(model, public, source)
            error = max(error, relative_error(model(x), values(NUMBERS["outputs"][kind + suffix])))
    held = sum(v.numel() for v in model.state_dict().values())  # the official model counts its tables as parameters
    return Row(name, "official, recorded", held, NUMBERS["toy_performer"]["parameters"], error)
