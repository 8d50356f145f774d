"""V-MoE against the numbers that the official code gave (github.com/google-research/vmoe, in jax): logits where there
is room for all tokens, and where there is not, in order of the router's sureness and of the tokens' places; and both
losses.

The published sizes were built by what builds its own configurations (with 1,000 classes where it says how many experts
there are, and no more) and evaluated as we do: the tokens of a picture compete for four times an even share, the surest
first, and capacities are not rounded. Those over two gigabytes have one dense and one sparse layer.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path

import torch
from torch import Tensor

import plait
from plait.core.catalog import systems
from plait.parts.experts import MixtureOfExperts, Router, uneven
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.official import against

SYSTEM, CUTS = "vmoe", True
CASES = {f"{SYSTEM}_{size}": "official" for size in systems()[SYSTEM].sizes if size != "nano"}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
ROOM = {"roomy": (4.0, True), "tight": (0.5, True), "tight in order": (0.5, False)}


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of this name: kernels of unit gain, scales near one, others near zero."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("kernel"):
        shared = "Attention" not in name and len(shape) == 3  # an expert's, who are many
        into = shape[:1] if re.search("query|key|value", name) else shape[shared:-1]
        return x / math.prod(into) ** 0.5
    return 0.2 * x + float(name.endswith("scale"))


def pictures() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return against(SYSTEM, size, Path(__file__), drawn, "flax")
    model = plait.create_model(name).eval()
    state = {key: drawn(key, tuple(t.shape)) for key, t in plait.save_weights(model, "flax").items()}
    plait.load_weights(model, state, "flax")
    assert set(epsilons(model)) == {1e-6}
    (mixture,) = (m for m in model.modules() if isinstance(m, MixtureOfExperts))
    error = 0.0
    for how, (factor, first) in ROOM.items():
        mixture.spare, mixture.first = factor, first
        error = max(error, relative_error(model(pictures()), torch.tensor(NUMBERS[how])))
    seen: list[Tensor] = []
    mixture.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].x))
    model(pictures())
    there = torch.ones(1, 17, dtype=torch.bool)
    gates, _ = mixture.router(seen[0], there)
    found = torch.stack([uneven(g[None], there) for g in gates])
    scores, noisy = (torch.tensor(NUMBERS[what])[None] for what in ("scores", "noisy"))
    load = Router(4, 4, 2, 1.0).load(scores, noisy, 0.25, torch.ones(1, 20, dtype=torch.bool))
    error = max(
        error, relative_error(found, torch.tensor(NUMBERS["importance"])), abs(float(load) / NUMBERS["load"] - 1)
    )
    return Row(name, "official, recorded", count(model), NUMBERS["parameters"], error)
