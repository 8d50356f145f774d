"""LoRA: Low-Rank Adaptation of Large Language Models. Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, 2022.
arXiv:2106.09685

New here: what a model is to learn anew is written as the product of two thin matrices, W + alpha / r * B A, beside
weights that stay as they are. B starts at zero, and with it the model as it was. `merge` adds the product to the
weights: nothing is left of it then, and nothing is slower.

`read_adapter` and `write_adapter` (`plait.parts.adapters`) are for peft's files.

Differs: A starts evenly spread, as in peft, where the paper draws it from a normal distribution.
"""

from __future__ import annotations

import math

from torch import nn

from plait.core.attend import Attend
from plait.core.block import Layer
from plait.core.surgery import Undo, freeze, swap, together
from plait.errors import PlaitError
from plait.parts.adapters import LoRALinear, merged


def lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16.0,
    targets: tuple[str, ...] | str = (),
    dropout: float = 0.0,
    last: float = 1.0,
) -> Undo:
    """Linear layers of `model` learn by a product of rank `rank`, and nothing else of it learns.

    targets: the last parts of their names, such as ("qkv", "up"), or "all"; () takes the projections of all attention,
    before the scores and behind. alpha: over the rank, what the product is multiplied by. dropout: of its input.
    last: the share of the model's layers, from the end, in which they are looked for; 1: everywhere.
    Raises ValueError for a model in which there is none of the targets, or which has adapters already.
    """
    if rank < 1:
        raise PlaitError(f"rank: got {rank}, expected 1 or more")
    if not 0 < last <= 1:
        raise PlaitError(f"last: got {last}, expected a share above 0 and up to 1")
    if any(isinstance(m, LoRALinear) for m in model.modules()):
        raise PlaitError(f"{type(model).__name__} has adapters already: merge them before adding others")
    found = wanted(model, (targets,) if isinstance(targets, str) else targets)
    if last < 1:
        found &= within(model, last)

    def make(old: nn.Linear) -> nn.Module | None:
        return LoRALinear(old, rank, alpha, dropout) if id(old) in found else None

    return together([lambda: freeze(model), lambda: swap(model, nn.Linear, make)])


def merge(model: nn.Module) -> nn.Module:
    """Add every adapter's product to its weights, in place, and put plain linear layers in their places. Returns
    `model`; what was frozen stays so. Raises ValueError where there is no adapter."""
    swap(model, LoRALinear, merged)
    return model


def wanted(model: nn.Module, targets: tuple[str, ...]) -> set[int]:
    """The ids of the linear layers that `targets` names. Raises ValueError for a name that is none's."""
    linear = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    if targets == ("all",):
        return {id(m) for m in linear.values()}
    if not targets:
        around = [m for m in model.modules() if attends(m)]
        found = {id(part) for m in around for part in parts(m) if type(part) is nn.Linear}
        if not found:
            raise PlaitError(
                f"{type(model).__name__} has no linear layers around attention: name some, such as targets=all"
            )
        return found
    last = {name: name.rpartition(".")[2] for name in linear}
    if missing := sorted(set(targets) - set(last.values())):
        raise PlaitError(
            f"targets: {type(model).__name__} has no linear layer {', '.join(missing)}: its own are "
            f"{', '.join(sorted(set(last.values())))}"
        )
    return {id(linear[name]) for name, end in last.items() if end in targets}


def attends(module: nn.Module) -> bool:
    """Whether it holds an attention, or projects for one that several share."""
    shared = "attend" in module._modules and module._modules["attend"] is None
    return shared or any(isinstance(part, Attend) for part in module.children())


def within(model: nn.Module, last: float) -> set[int]:
    """The ids of the modules inside the last of the model's layers, rounded up. Raises ValueError for a model without
    layers."""
    layers = outermost(model)
    if not layers:
        raise PlaitError(f"{type(model).__name__} has no layers of which some could be the last: leave last= out")
    return {id(m) for layer in layers[-math.ceil(last * len(layers) - 1e-9) :] for m in layer.modules()}


def outermost(model: nn.Module) -> list[Layer]:
    """The layers of `model` that stand in no other layer, in its order."""
    found = [m for m in model.modules() if isinstance(m, Layer)]
    inside = {id(m) for layer in found for m in layer.modules() if m is not layer}
    return [layer for layer in found if id(layer) not in inside]


def parts(module: nn.Module) -> list[nn.Module]:
    """What `module` is made of, looking into its lists and dicts."""
    found = []
    for part in module.children():
        found += parts(part) if isinstance(part, (nn.ModuleList, nn.ModuleDict)) else [part]
    return found
