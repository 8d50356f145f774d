"""From a schema and a system's name to a model for a task."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from plait.core.catalog import ModelInfo, model_info, systems
from plait.core.create import create_model
from plait.data.kinds import KINDS
from plait.data.schema import Schema
from plait.errors import UsageError
from plait.tasks.base import Objective, Task
from plait.tasks.bind import HALF, Bound, bind


@dataclass(frozen=True)
class Recipe:
    """What `create_model` needs to build the same system again, and how it is bound. Plain JSON."""

    name: str
    arguments: dict
    role: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    slots: dict  # {slot: {"kind": its kind, and what that kind is told of it}}

    def build(self, *, seed: int = 0, pretrained: bool | str = False) -> Bound:
        system = create_model(self.name, seed=seed, pretrained=pretrained, mmap=False, **self.arguments)
        return bind(system, self.role, self.slots, self.mean, self.std)


def choose(name: str, schema: Schema, task: type[Task]) -> ModelInfo:
    """The model info of `name`, whose slots the schema then bears. Raises UsageError where it does not fit, naming
    systems that do."""
    info = model_info(name)
    kinds = [s.kind for s in schema.slots]
    free = "slots" in _signature(info)
    doubled = sorted({k for k in kinds if kinds.count(k) > 1})
    fits = set(kinds) <= set(info.takes) and (free or not doubled)
    if not fits or role_for(task, info) is None:
        why = (
            f"it cannot {task.choice}"
            if role_for(task, info) is None
            else f"it reads {', '.join(info.takes)}, each once, and the inputs are {', '.join(kinds)}"
        )
        others = [n for n, s in systems().items() if set(kinds) <= set(s.takes) and role_for(task, model_info(n))]
        others = [o for o in others if not doubled or "slots" in _signature(model_info(o))]
        raise UsageError(
            f"{info.name} does not fit: {why}. {'These would: ' + ', '.join(others) if others else 'No system fits'}."
        )
    if not free:
        schema.rename_slots({s.name: s.kind for s in schema.slots})
    return info


def role_for(task: type[Task], info: ModelInfo) -> str | None:
    """The role of the model that serves the task best; None where none does."""
    return next((r for r in task.roles if r in info.roles), None)


def reads(info: ModelInfo) -> dict[str, Any]:
    """What the system's size fixes of its inputs: `image` (H, W) and `length` (most tokens); absent where it leaves
    them open."""
    return {key: value for key in ("image", "length") if (value := argument(info, key)) is not None}


def argument(info: ModelInfo, name: str) -> Any:
    """The value of one constructor argument in this size; None where it has none or the class no such argument."""
    signature = _signature(info)
    value = info.arguments.get(name, signature[name].default if name in signature else None)
    return None if value is inspect.Parameter.empty else value


def recipe(
    info: ModelInfo,
    schema: Schema,
    task: type[Task],
    *,
    pretrained: bool = False,
    labels: int = 0,
    words: dict | None = None,
) -> Recipe:
    """How to build the system for these columns. labels: outputs of each frame of a transcriber. words: a generator's
    vocab, begin, end."""
    signature, shapes = _signature(info), {s.name: schema.shape(s.name) for s in schema.slots}
    kind_of = {s.name: s.kind for s in schema.slots}
    slots = {slot: {"kind": kind_of[slot]} | KINDS[kind_of[slot]].arguments(shape) for slot, shape in shapes.items()}
    arguments: dict = {}
    if "slots" in signature:
        arguments["slots"] = slots
    for slot, shape in shapes.items():
        if kind_of[slot] == "image" and "image" in signature:
            arguments["image"] = tuple(shape["size"])
        if kind_of[slot] == "audio" and "rate" in signature:
            arguments["rate"] = shape["rate"]
        if kind_of[slot] == "text" and "vocab" in signature and not pretrained:
            arguments["vocab"] = shape["vocab"]
            if "mask" in signature and shape["mask"] is not None:
                arguments["mask"] = shape["mask"]
    if "num_classes" in signature:
        arguments["num_classes"] = 0
    if "labels" in signature:
        arguments["labels"] = labels
    if words and not pretrained:  # published weights have their own, which the tokenizer's were found to be
        arguments |= words
    role = role_for(task, info)
    mean, std = (tuple(info.weights.get(name, HALF)) for name in ("mean", "std"))
    return Recipe(info.name, arguments, role, mean, std, slots)


def objective(info: ModelInfo) -> Objective | None:
    """The system's own, where it has one."""
    module = _module(info)
    if not hasattr(module, "objective"):
        return None
    return Objective(module.objective, getattr(module, "make_state", None), getattr(module, "after_step", None))


def _module(info: ModelInfo) -> ModuleType:
    return importlib.import_module(info.system.module)


def _signature(info: ModelInfo) -> dict[str, inspect.Parameter]:
    model: type[nn.Module] = _module(info).MODEL
    return dict(inspect.signature(model.__init__).parameters)
