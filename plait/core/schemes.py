"""How papers begin training from nothing: rules for first weights, a line each, and rates of stochastic depth.

A system's file has `PAPER = Paper(rules, drop_path)`; `create_model(name, scheme="paper")` and `plait fit --scheme
paper` use it. Without a scheme weights begin as `plait.core.init` says, which suits small models on small tables.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from plait.core.catalog import ModelInfo, system_module, systems
from plait.core.init import seeded
from plait.errors import PlaitError

# Fills a parameter of a module, that has this name in the model.
Fill = Callable[[Tensor, nn.Module, str], object]
# "Linear.weight" fits what is called so in a module of this class or of one that extends it, "head.*" whole names.
Rule = tuple[str, Fill]


class Paper(NamedTuple):
    """rules: a parameter takes the first that fits it, and without one begins as always; where sizes differ, a function
    of the model that gives them. drop_path: {size, perhaps with *: the last layer's rate of stochastic depth}; other
    sizes have that of their row."""

    rules: tuple[Rule, ...] | Callable[[Any], tuple[Rule, ...]]
    drop_path: Mapping[str, float] = {}


def trunc(std: float) -> Fill:
    """A normal distribution cut off at -2 and 2, whatever its spread: as BEiT's, timm's and torch's."""
    return lambda t, _module, _name: nn.init.trunc_normal_(t, std=std)


def clipped(std: float | None = None) -> Fill:
    """A normal distribution cut off at two deviations, as JAX's: its spread is 0.88 of what is named. None: one over
    the root of the parameter's last side."""

    def fill(t: Tensor, _module: nn.Module, _name: str) -> None:
        nn.init.trunc_normal_(t, 0.0, 1.0, -2.0, 2.0).mul_(std or t.shape[-1] ** -0.5)

    return fill


def normal(std: float) -> Fill:
    return lambda t, _module, _name: nn.init.normal_(t, std=std)


def constant(value: float) -> Fill:
    return lambda t, _module, _name: nn.init.constant_(t, value)


def xavier(t: Tensor, _module: nn.Module, _name: str) -> None:
    """Glorot's, evenly spread."""
    nn.init.xavier_uniform_(t)


def lecun(t: Tensor, _module: nn.Module, _name: str) -> None:
    """A normal distribution of variance one over what comes in, cut off at two deviations."""
    nn.init.trunc_normal_(t, 0.0, 1.0, -2.0, 2.0).mul_(_fan_in(t) ** -0.5 / 0.87962566103423978)


def evenly(t: Tensor, module: nn.Module, _name: str) -> None:
    """torch's own of linear layers and convolutions, biases too."""
    bound = _fan_in(cast(nn.Linear, module).weight) ** -0.5
    nn.init.uniform_(t, -bound, bound)


def fan_out(t: Tensor, module: nn.Module, _name: str) -> None:
    """He's normal distribution of a convolution, by what leaves one of its groups."""
    out = t.shape[0] * math.prod(t.shape[2:]) // getattr(module, "groups", 1)
    nn.init.normal_(t, std=(2.0 / out) ** 0.5)


def _fan_in(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])


ZERO, ONE, FAINT = constant(0.0), constant(1.0), normal(1e-6)
# What most begin with: linear layers and tables of positions at 0.02, convolutions as torch has them.
LINEAR: tuple[Rule, ...] = (("Linear.weight", trunc(0.02)), ("Linear.bias", ZERO))
CONVS: tuple[Rule, ...] = (("Conv2d.*", evenly), ("Conv3d.*", evenly))
FAN_OUT: tuple[Rule, ...] = (("Conv2d.weight", fan_out), ("Conv2d.bias", ZERO))
TABLES: tuple[Rule, ...] = (("GridPositions.table", trunc(0.02)), ("RelativeBias.table", trunc(0.02)))
VIT: tuple[Rule, ...] = (("*cls", FAINT), ("*registers", FAINT), *TABLES, *LINEAR, *CONVS)


def paper_of(info: ModelInfo, scheme: str) -> Paper:
    """The scheme `scheme` of a size's system. Raises PlaitError for one that there is not, naming systems that have
    theirs."""
    if scheme != "paper":
        raise PlaitError(f"scheme: got {scheme!r}, expected 'paper', or none for plait's own")
    paper = getattr(system_module(info), "PAPER", None)
    if paper is None:
        raise PlaitError(
            f"{info.name}: how its paper begins is not told here, only of {', '.join(with_papers())}: leave scheme out"
        )
    return paper


def with_papers() -> list[str]:
    """The systems whose papers' beginnings are told."""
    return [name for name, system in systems().items() if system.paper]


def drop_path_of(info: ModelInfo, paper: Paper) -> dict[str, float]:
    """{"drop_path": rate} where the paper names one for this size."""
    found = [rate for size, rate in paper.drop_path.items() if fnmatch.fnmatchcase(info.size, size)]
    return {"drop_path": found[0]} if found else {}


def begin(model: nn.Module, paper: Paper, *, seed: int = 0) -> nn.Module:
    """Fill the parameters of `model` that a rule fits, by the first that does."""
    rules = paper.rules(model) if callable(paper.rules) else paper.rules
    device = next(model.parameters()).device
    with seeded(seed, device):
        for name, module in model.named_modules():
            kinds = [kind.__name__ for kind in type(module).__mro__]
            for leaf, t in module.named_parameters(recurse=False):
                whole = f"{name}.{leaf}" if name else leaf
                names = [whole, *(f"{kind}.{leaf}" for kind in kinds)]
                fill = next((f for pattern, f in rules if any(fnmatch.fnmatchcase(n, pattern) for n in names)), None)
                if fill is not None:
                    with torch.no_grad():
                        fill(t, module, whole)
    return model
