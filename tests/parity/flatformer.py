"""FlatFormer's layers against the numbers that the official code gave (github.com/mit-han-lab/flatformer), with plain
attention in place of its CUDA kernel: three clouds packed in a row, and padded. Their voxels fill whole groups, since
the two fill up a last group in different ways."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

import plait
from plait.core.tokens import Tokens
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.recorded import noise

SYSTEM = "flatformer"
CASES = {"flatformer_toy": "official"}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
SIZE = dict(cells=(32, 32, 1), window=4, group=8, width=32, depth=2, heads=2)
COUNTS, SHOWN = (40, 24, 56), 9  # voxels of each cloud; of all, each ninth is kept


def clouds() -> tuple[Tensor, Tensor]:
    """Features (S, D) and places (S, 3) of the voxels of all clouds, one after another."""
    g = torch.Generator().manual_seed(3)
    cells = torch.cat([torch.randperm(32 * 32, generator=g)[:n] for n in COUNTS])
    return torch.randn(sum(COUNTS), 32, generator=g), torch.stack([cells % 32, cells // 32, cells * 0], 1)


@torch.no_grad()
def parity(name: str) -> Row:
    model = plait.create_model(name, **SIZE).eval()
    model.stack.load_state_dict({key: noise(key, tuple(t.shape)) for key, t in model.stack.state_dict().items()})
    assert set(epsilons(model.stack)) == {1e-5}
    (x, pos), want = clouds(), torch.tensor(NUMBERS["features"])
    packed = model.stack(Tokens(x[None], pos=pos[None], lengths=COUNTS)).x[0]
    keep = torch.arange(max(COUNTS)) < torch.tensor(COUNTS)[:, None]
    wide, places = torch.full((*keep.shape, 32), 9.0), torch.zeros(*keep.shape, 3, dtype=torch.int64)
    wide[keep], places[keep] = x, pos
    padded = model.stack(Tokens(wide, pos=places, keep=keep)).x[keep]
    error = max(relative_error(got[::SHOWN], want) for got in (packed, padded))
    return Row(name, "official, recorded", count(model.stack), NUMBERS["parameters"], error)
