"""CCT against the numbers that the official code gave (github.com/SHI-Labs/Compact-Transformers), both kinds of
positions, two kernels, and patches with sequence pooling (CVT) or a class token (ViT-Lite); every published size whole.

Its fixed positions are parameters there that are not trained, and are not counted.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.official import against
from tests.parity.recorded import loaded, values, weights

SYSTEM = "cct"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return against(SYSTEM, size, Path(__file__))
    theirs = {k: values(v) for k, v in NUMBERS["outputs"].items()}
    g = torch.Generator().manual_seed(7)
    x, larger = torch.randn(3, 3, 32, 32, generator=g), torch.randn(2, 3, 48, 48, generator=g)
    learned = loaded(name, "official", NUMBERS["toy"]["keys"])
    assert set(epsilons(learned)) == {1e-5}
    seven = loaded(name, "official", NUMBERS["kernel_7"]["keys"], kernel=7, image=(48, 48))
    fixed = plait.create_model(name, learned=False).eval()
    public = weights(NUMBERS["toy"]["keys"]) | {"classifier.positional_emb": fixed.positions.table}
    plait.load_weights(fixed, public, "official")
    pairs = [(learned(x), theirs["learned"]), (fixed(x), theirs["sine"]), (seven(larger), theirs["kernel_7"])]
    for form, other in (("cvt", dict(patch=4)), ("lite", dict(patch=4, cls=True))):
        patches = loaded(name, "official", NUMBERS[form]["keys"], **other)
        assert count(patches) == NUMBERS[form]["parameters"]
        pairs.append((patches(x), theirs[form]))
    fixed = plait.create_model(name, patch=4, cls=True, learned=False).eval()
    public = weights(NUMBERS["lite"]["keys"]) | {"classifier.positional_emb": fixed.positions.table}
    plait.load_weights(fixed, public, "official")
    pairs.append((fixed(x), theirs["lite_sine"]))
    return Row(
        name, "official, recorded", count(learned), NUMBERS["toy"]["parameters"], max(relative_error(*p) for p in pairs)
    )
