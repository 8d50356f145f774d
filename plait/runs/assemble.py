"""From a schema and a system's name to a model for a task."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from plait.core.catalog import CROP, ModelInfo, model_class, model_info, slots_of, system_module, systems
from plait.core.methods import Change
from plait.core.recipe import Recipe
from plait.core.roles import ROLES, Model
from plait.core.schemes import drop_path_of, paper_of
from plait.data.kinds import KINDS
from plait.data.schema import Schema
from plait.errors import PlaitError, UsageError
from plait.runs.settings import Settings
from plait.tasks.base import Objective, Task
from plait.tasks.bind import HALF, Bound, bind


@dataclass(frozen=True, kw_only=True)
class BoundRecipe(Recipe):
    """A system's recipe, and how the system is bound. Plain JSON."""

    role: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    slots: dict  # {slot: {"kind": its kind, and what that kind is told of it}}

    def bind(self, system: nn.Module) -> Bound:
        """What `build` or `build_on_meta` made, bound. Raises UsageError where a method took the role away."""
        if not isinstance(system, ROLES[self.role]):
            raise UsageError(f"{self.title} is a {type(system).__name__}, which is no {self.role}: leave a method out")
        return bind(cast(Model, system), self.role, self.slots, self.mean, self.std)


def choose(name: str, schema: Schema, task: type[Task]) -> ModelInfo:
    """The model info of `name`, whose slots the schema then bears. Raises UsageError where it does not fit, naming
    systems that do."""
    info = model_info(name)
    kinds = [s.kind for s in schema.slots]
    free = "slots" in model_class(info).fits
    fits = seats(info, kinds)
    if not fits or role_for(task, info) is None:
        why = (
            f"it cannot {task.choice}"
            if role_for(task, info) is None
            else f"it reads {', '.join(info.takes)}, each once, and the inputs are "
            + ", ".join(f"{s.kind} ({', '.join(s.columns)})" for s in schema.slots)
        )
        others = [n for n in systems() if role_for(task, model_info(n)) and seats(model_info(n), kinds)]
        raise UsageError(
            f"{info.name} does not fit: {why}. {'These would: ' + ', '.join(others) if others else 'No system fits'}; "
            "or leave columns out with --inputs, or read one otherwise with --kind COLUMN=KIND."
        )
    if not free:
        given = dict(zip((s.name for s in schema.slots), slots_of(kinds), strict=True))
        for slot in schema.slots:  # one picture of two is the first
            if slot.kind not in info.slots and given[slot.name] == slot.kind:
                given[slot.name] = next(name for name, kind in info.slots.items() if kind == slot.kind)
        schema.rename_slots(given)
    return info


def seats(info: ModelInfo, kinds: Sequence[str]) -> bool:
    """Whether the model reads as many columns of each of these kinds."""
    free = "slots" in model_class(info).fits
    return all(kind in info.takes and (free or kinds.count(kind) <= info.takes.count(kind)) for kind in kinds)


def role_for(task: type[Task], info: ModelInfo) -> str | None:
    """The role of the model that serves the task best; None where none does."""
    return next((r for r in task.roles if r in info.roles), None)


def reads(info: ModelInfo) -> dict[str, Any]:
    """What the system's size fixes of its inputs: `image` (H, W), `length` (most tokens), and `rate`, where weights are
    published that hear sounds at one; absent where it leaves them open."""
    model = model_class(info)
    towers = "slots" in model.fits and not one_reader(info)  # of which each has words of its own, of any number
    fixed = ["image"] * ("image" in model.fits) + ["length"] * ("text" in info.takes and not towers)
    heard = {name: info.weights[name] for name in ("rate",) if name in info.weights}
    return {name: argument(info, name) for name in fixed} | heard


def cropped(row: dict[str, Any]) -> dict[str, Any] | None:
    """How pictures are resized and cropped for the weights of a row; None where it does not say."""
    return {name: row[name] for name in CROP} if "crop_pct" in row else None


def one_reader(info: ModelInfo) -> bool:
    """Whether all texts, however many there are, are read by one tower, so that their words must be the same."""
    return {"slots", "vocab"} <= set(model_class(info).fits)


def argument(info: ModelInfo, name: str) -> Any:
    """The value of one constructor argument in this size, its row's or the class's own, or that of the part that it
    goes on to; None where it has none."""
    own = inspect.signature(model_class(info)).parameters.get(name)
    if own is None and name not in info.arguments:
        takers = [model_info(part) for key, part in info.parts.items() if name in info.system.parts[key]]
        return next((found for taker in takers if (found := argument(taker, name)) is not None), None)
    value = info.arguments.get(name, None if own is None else own.default)
    return None if value is inspect.Parameter.empty else value


def recipe(
    info: ModelInfo,
    schema: Schema,
    task: type[Task],
    *,
    pretrained: bool = False,
    labels: int | None = None,
    words: dict | None = None,
    image: tuple[int, int] | None = None,
    changes: Sequence[Change] = (),
) -> BoundRecipe:
    """How to build the system for these columns. labels: outputs of each frame of a transcriber. words: a generator's
    vocab, begin, end. image: the (H, W) of pictures that a diffuser makes."""
    shapes = {s.name: {"kind": s.kind} | schema.shape(s.name) for s in schema.slots}
    slots = {slot: {"kind": s["kind"]} | KINDS[s["kind"]].arguments(s) for slot, s in shapes.items()}
    arguments = fitted(model_class(info), shapes, slots, pretrained)
    if "backbone" in info.roles:
        arguments["num_classes"] = 0  # the task has a head of its own
    if image is not None:
        arguments["image"] = image
    if labels is not None:
        arguments["labels"] = labels
    if words and not pretrained:  # published weights have their own, which the tokenizer's were found to be
        arguments |= words
    role = role_for(task, info)
    assert role is not None, f"{info.name} was chosen for {task.choice}"
    mean, std = (tuple(info.weights.get(name, HALF)) for name in ("mean", "std"))
    return BoundRecipe(info.name, arguments, changes, role=role, mean=mean, std=std, slots=slots)


# What a constructor's argument is called in the shape of which kind of slot.
FITTED = {
    "points": ("points", "channels"),
    "regions": ("series", "channels"),
    "image": ("image", "size"),
    "rate": ("audio", "rate"),
    "seconds": ("audio", "seconds"),
    "vocab": ("text", "vocab"),
    "mask": ("text", "mask"),
}
OWN = ("vocab", "mask", "seconds")  # of published weights


def fitted(model: type[Model], shapes: dict[str, dict], slots: dict[str, dict], pretrained: bool) -> dict[str, Any]:
    """The constructor's arguments in `model.fits`, from the shapes of the slots; those in `OWN` are left alone where
    the weights are published."""
    found: dict[str, Any] = {}
    for name in model.fits:
        if name == "slots":
            found[name] = slots
        elif not (pretrained and name in OWN):
            kind, key = FITTED[name]
            for shape in shapes.values():
                if shape["kind"] == kind and shape[key] is not None:
                    found[name] = tuple(shape[key]) if name == "image" else shape[key]
    return found


def objective(info: ModelInfo) -> Objective | None:
    """The system's own, where it has one."""
    module = system_module(info)
    if not hasattr(module, "objective"):
        return None
    return Objective(module.objective, getattr(module, "make_state", None), getattr(module, "after_step", None))


def depth(info: ModelInfo, settings: Settings) -> dict[str, float]:
    """The argument that the scheme of a paper sets. Raises UsageError where there is none."""
    if settings.scheme is None:
        return {}
    if settings.pretrained:
        raise UsageError(f"--scheme {settings.scheme} is for training from nothing: leave out published weights, or it")
    try:
        return drop_path_of(info, paper_of(info, settings.scheme))
    except PlaitError as error:
        raise UsageError(f"--scheme {settings.scheme}: {error}") from error


def prefixes(told: dict[str, str], schema: Schema, task: type[Task]) -> dict[str, str]:
    """{column: what is put before its texts}, of what a weights row tells: where texts search among texts, the first
    column asks."""
    names = [c.name for c in schema.used("input") if c.kind == "text"]
    if task.verb == "search" and len(names) > 1:
        return {name: told.get("passage" if i else "query", "") for i, name in enumerate(names)}
    return dict.fromkeys(names, told.get("text", ""))
