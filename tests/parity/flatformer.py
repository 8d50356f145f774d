"""FlatFormer's layers against the numbers that the official code gave (github.com/mit-han-lab/flatformer), with plain
attention in place of its CUDA kernel: some clouds packed in a row, and padded.

Their voxels fill whole groups, since the two fill up a last group in different ways. What makes voxels of points is
ours in all sizes, and so are the classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.tokens import Tokens
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.recorded import noise

SYSTEM = "flatformer"
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {f"flatformer_{size}": "official" for size in ("toy", *NUMBERS["sizes"])}
SIZE = dict(cells=(32, 32, 1), window=4, group=8, width=32, depth=2, heads=2)
COUNTS, PUBLISHED = (40, 24, 56), (432, 288)  # voxels of each cloud


def clouds(counts: tuple[int, ...] = COUNTS, width: int = 32, side: int = 32) -> tuple[Tensor, Tensor]:
    """Features (S, D) and places (S, 3) of the voxels of all clouds, one after another."""
    g = torch.Generator().manual_seed(3)
    cells = torch.cat([torch.randperm(side * side, generator=g)[:n] for n in counts])
    return torch.randn(sum(counts), width, generator=g), torch.stack([cells % side, cells // side, cells * 0], 1)


@torch.no_grad()
def compared(model: nn.Module, counts: tuple[int, ...], x: Tensor, pos: Tensor) -> Iterator[Tensor]:
    """The features (S, D) that our layers make of clouds, packed and padded."""
    model.stack.load_state_dict({key: noise(key, tuple(t.shape)) for key, t in model.stack.state_dict().items()})
    assert set(epsilons(model.stack)) == {1e-5}
    yield model.stack(Tokens(x[None], pos=pos[None], lengths=counts)).x[0]
    keep = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    wide, places = torch.full((*keep.shape, x.shape[1]), 9.0), torch.zeros(*keep.shape, 3, dtype=torch.int64)
    wide[keep], places[keep] = x, pos
    yield model.stack(Tokens(wide, pos=places, keep=keep)).x[keep]


def parity(name: str) -> Row:
    if name == "flatformer_toy":
        model, facts = plait.create_model(name, **SIZE).eval(), NUMBERS
        found = [made[::9] for made in compared(model, COUNTS, *clouds())]
    else:
        model, facts = plait.create_model(name).eval(), NUMBERS["sizes"][name.removeprefix("flatformer_")]
        found = [made[::23, ::11] for made in compared(model, PUBLISHED, *clouds(PUBLISHED, 128, 120))]
        assert model.voxels.first.in_features == facts["points"] + 6
    error = max(relative_error(made, torch.tensor(facts["features"])) for made in found)
    told, ran = "official encoder alone, recorded", "output" if name == "flatformer_toy" else "layers"
    return Row(name, told, count(model.stack), facts["parameters"], error, ran)
