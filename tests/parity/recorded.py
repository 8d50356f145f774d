"""What the checks against code that cannot be installed beside ours share: it was run once, in a small size, and its
numbers were kept.

Weights and inputs are made again from names: noise seeded by a key's name, scaled by what the key is. A file holds, for
each size, the official state dict's names and shapes ("*" stands for the numbers of the layers) and, for the small one,
what came out.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import build
from plait.core.weights import State

Shapes = dict[str, tuple[int, ...]]


def expand(keys: dict[str, list]) -> Shapes:
    """{name: shape} of {name: [shape]} and {name with "*": [shape, first, last]}."""
    shapes = {}
    for name, (shape, *layers) in keys.items():
        for i in range(layers[0], layers[1] + 1) if layers else [0]:
            shapes[name.replace("*", str(i))] = tuple(shape)
    return shapes


def noise(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor of this name: vectors named "weight" or like scales near one, other vectors near zero, matrices of
    unit gain."""
    if not shape or name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("running_var"):
        return 1 + 0.2 * x.abs()
    if x.dim() == 1:
        return 0.2 * x + float(name.endswith(("weight", "gamma", "ls1", "ls2")))
    return x / max(x[0].numel(), 1) ** 0.5


def weights(keys: dict[str, list]) -> State:
    return {name: noise(name, shape) for name, shape in expand(keys).items()}


def values(entry: dict) -> Tensor:
    """The tensor that {"shape": ..., "values": ...} holds."""
    return torch.tensor(entry["values"]).reshape(entry["shape"])


def learned(state: State) -> Shapes:
    """The names and shapes of a state dict, counters left out."""
    return {name: tuple(t.shape) for name, t in state.items() if t.dim()}


def same_keys(name: str, source: str, keys: dict[str, list], **arguments) -> bool:
    """Whether the size `name` of ours, in the layout `source`, has the recorded names and shapes."""
    return learned(plait.save_weights(build(name, **arguments), source)) == {n: s for n, s in expand(keys).items() if s}


def loaded(name: str, source: str, keys: dict[str, list], **arguments) -> nn.Module:
    """Ours with the weights of the recorded run."""
    return plait.load_weights(plait.create_model(name, **arguments).eval(), weights(keys), source)
