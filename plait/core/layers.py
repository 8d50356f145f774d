"""The layers of any model, from below: what each gives out, and how fast each learns."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from plait.core.attend import twin
from plait.core.block import Layer
from plait.core.surgery import Undo
from plait.core.tokens import Tokens
from plait.errors import PlaitError


def outermost(model: nn.Module) -> dict[str, Layer]:
    """Every `Layer` that stands in no other, by its name, in the order in which the model holds them."""
    found: dict[str, Layer] = {}

    def visit(module: nn.Module, name: str) -> None:
        if isinstance(module, Layer):
            found[name] = module
            return
        for part, child in module.named_children():
            visit(child, f"{name}.{part}" if name else part)

    visit(model, "")
    return found


def tapped(model: nn.Module) -> tuple[nn.Module, dict[str, Tokens | Tensor]]:
    """A twin of `model`, and what each of its outermost layers gave when it last ran, by the layer's name: Tokens, x
    (B, N, D), or a map (B, C, H, W) where maps flow through it. Not to be compiled. Raises PlaitError for a model
    without layers."""
    model = twin(model)
    given: dict[str, Tokens | Tensor] = {}
    for name, layer in outermost(model).items():
        layer.register_forward_hook(lambda _, inputs, made, name=name: given.update({name: made}))
    if not outermost(model):
        raise PlaitError(f"{type(model).__name__} has no Layer to look at: expected a model that is made of them")
    return model, given


def slow_down(model: nn.Module, rate: float) -> Undo:
    """From now on a layer learns `rate` times as fast as the one above it: its modules' `lr_factor`, which
    `train.optim.groups` reads, are multiplied by rate ** distance. The last layer's distance is 1; of what stands above
    all layers, and of classifiers, 0; of what stands below, one more than the first layer's (BEiT, arXiv:2106.08254).

    Of a model of several modalities each tower is counted by itself. Where a pyramid's stages hold steps that are no
    `Layer`, such as convolutions, each counts as one. Returns the undo. Raises PlaitError for a rate that is not from 0
    to 1.
    """
    if not 0.0 < rate <= 1.0:
        raise PlaitError(f"rate: got {rate}, expected more than 0, and 1 at most")
    distance, before = _distances(model), dict[nn.Module, float | None]()

    def visit(module: nn.Module, name: str, old: float, new: float) -> None:
        """old, new: the product of the factors of what `module` stands in."""
        if module in before:  # it stands in two places: the first counts, as for an optimizer
            return
        own = getattr(module, "lr_factor", 1.0)
        wanted = old * own * rate ** distance[name]
        before[module] = vars(module).get("lr_factor")
        vars(module)["lr_factor"] = wanted / new
        for part, child in module.named_children():
            visit(child, f"{name}.{part}" if name else part, old * own, wanted)

    visit(model, "", 1.0, 1.0)

    def undo() -> None:
        for module, factor in before.items():
            del vars(module)["lr_factor"]
            vars(module).update({} if factor is None else {"lr_factor": factor})

    return undo


def _distances(model: nn.Module) -> dict[str, int]:
    """How far each module is from the top, by its name."""
    found = dict.fromkeys((name for name, _ in model.named_modules()), 0)
    below: list[str] = []  # what the next tower stands on
    for name, tower in _towers(model):
        heights, top = _heights(tower, name)
        if top:
            found |= dict.fromkeys(below, top + 1) | {n: top + 1 - h for n, h in heights.items()}
        below = [] if top else [*below, *heights]
    classes = tuple(getattr(model, "classifier", ()))
    return {name: 0 if classes and f"{name}.".startswith(classes) else n for name, n in found.items()}


def _towers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model itself, or, where it reads several modalities, its parts."""
    if len(getattr(model, "takes", ())) < 2:
        yield "", model
        return
    for name, part in model.named_children():
        if isinstance(part, nn.ModuleDict):
            yield from ((f"{name}.{key}", inner) for key, inner in part.items())
        else:
            yield name, part


def _heights(tower: nn.Module, name: str) -> tuple[dict[str, int], int]:
    """The number of steps up to each module of a tower, itself included; one more than all above the last. And how many
    there are."""
    bare = not outermost(tower)
    heights: dict[str, int] = {}
    top = last = 0

    def visit(module: nn.Module, name: str, listed: bool) -> None:
        nonlocal top, last
        layered = bool(outermost(module))
        step = isinstance(module, Layer) or listed and not layered and any(True for _ in module.parameters())
        top += step
        heights[name] = top
        listed = isinstance(module, nn.ModuleList) and (bare or layered) or listed and isinstance(module, nn.Sequential)
        for part, child in module.named_children():
            if step:
                heights.update((f"{name}.{part}.{n}".rstrip("."), top) for n, _ in child.named_modules())
            else:
                visit(child, f"{name}.{part}" if name else part, listed)
        last = len(heights) if step else last

    visit(tower, name, False)
    return heights | dict.fromkeys(list(heights)[last:], top + 1), top
