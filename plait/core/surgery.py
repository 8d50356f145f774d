"""Changes to a finished model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Attention
from plait.core.init import initialise_new
from plait.errors import PlaitError

Undo = Callable[[], None]
M = TypeVar("M", bound=nn.Module)
Foldable = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d


def freeze(module: nn.Module) -> Undo:
    """No parameter of `module` takes a gradient any more. Returns the undo, which restores each one's own setting."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    for p, _ in before:
        p.requires_grad_(False)

    def undo() -> None:
        for p, wanted in before:
            p.requires_grad_(wanted)

    return undo


def swap(
    model: nn.Module,
    kind: type[M],
    make: Callable[[M], nn.Module | None],
    *,
    seed: int = 0,
    inside: type[nn.Module] = nn.Module,
) -> Undo:
    """Put `make(old)` where a module of the type `kind` (not of a subclass) stands, at every such place in `model`.

    make: is called with the old module, on the meta device: layers that it builds are initialised here, from `seed` and
        by the model's scheme, on the old module's device; old layers that it hands on keep their weights. None leaves
        the old module where it is.
    inside: only where the parent is one of these.
    Returns the undo, which puts the old modules back. Raises ValueError, with `model` as it was, where there is nothing
    to swap.
    """
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is kind and isinstance(parent, inside)
    ]
    swapped: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
    for parent, name, old in places:
        with torch.device("meta"):
            new = make(old)
        if new is not None:
            device = next((t.device for t in [*old.parameters(), *model.parameters()]), torch.device("cpu"))
            initialise_new(new, scheme=getattr(model, "scheme", {}), seed=seed + len(swapped), device=device)
            swapped.append((parent, name, old, new.train(old.training)))
    if not swapped:
        what = kind.__name__ + (f" inside an {inside.__name__}" if inside is not nn.Module else "")
        raise PlaitError(
            f"{type(model).__name__} has no {what} that could be changed: choose a model that is made of them"
        )
    for parent, name, _, new in swapped:
        setattr(parent, name, new)

    def undo() -> None:
        for parent, name, old, _ in swapped:
            setattr(parent, name, old.train(parent.training))

    return undo


def swap_attention(model: nn.Module, make: Callable[[Attention], nn.Module], why: str) -> Undo:
    """`swap` every self-attention with its projections, but causal ones, of which `why` says why they cannot be
    changed. Raises ValueError also where all are causal."""
    return swap(model, Attention, _not_causal(model, make, why))


def swap_attend(model: nn.Module, make: Callable[[Attend], Attend], why: str) -> Undo:
    """`swap` the seam of every self-attention, whatever projects around it; as `swap_attention` for causal ones."""
    return swap(model, Attend, _not_causal(model, make, why))


def swap_inside(model: nn.Module, make: Callable[[Attention], Attend], why: str) -> Undo:
    """As `swap_attend`, but only inside an `Attention`, whose scores have the usual scale and no bias: make is given
    that."""
    around = {id(m.attend): m for m in model.modules() if isinstance(m, Attention)}
    return swap(model, Attend, _not_causal(model, lambda seam: make(around[id(seam)]), why), inside=Attention)


def _not_causal(model: nn.Module, make: Callable[[M], nn.Module], why: str) -> Callable[[M], nn.Module | None]:
    seams = [m for m in model.modules() if type(m) is Attend and not m.cross]
    if seams and all(seam.causal for seam in seams):
        raise PlaitError(f"{type(model).__name__} has causal attention, {why}")

    def checked(old: M) -> nn.Module | None:
        seam = cast(Attend, old if isinstance(old, Attend) else old.attend)
        return None if seam.causal or seam.cross else make(old)

    return checked


def together(changes: Iterable[Callable[[], Undo]]) -> Undo:
    """Several changes as one: all of them, in order, or none if one raises. Returns the undo of all, the last first."""
    undos: list[Undo] = []

    def undo() -> None:
        for back in reversed(undos):
            back()

    try:
        for change in changes:
            undos.append(change())
    except BaseException:
        undo()
        raise
    return undo


@torch.no_grad()
def fold_norms(model: nn.Module) -> nn.Module:
    """Fold batch norms into their neighbours and branches into one, in place: the same answers in evaluation, sooner.

    In every `nn.Sequential` a batch norm goes into the convolution or linear layer before it, or into the linear layer
    after it. A module
    whose parts are arranged otherwise says itself what it becomes: `fold()` returns the module that replaces it, and is
    called when its children are folded already.
    Returns the model. Not to be trained or undone: raises ValueError for a model in training mode.
    """
    if model.training:
        raise PlaitError(
            "got a model in training mode, whose batch norms follow each batch: call model.eval() before folding"
        )
    for name, child in list(model.named_children()):
        setattr(model, name, fold_norms(child))
    if fold := getattr(model, "fold", None):
        return fold().eval()
    if type(model) is nn.Sequential:
        return _sequence(list(model)).eval()
    return model


def _sequence(layers: list[nn.Module]) -> nn.Module:
    kept: list[nn.Module] = []
    for layer in layers:
        last = kept[-1] if kept else None
        if isinstance(layer, Norm) and (type(last) is nn.Conv2d or type(last) is nn.Linear):
            kept[-1] = fold_after(last, layer)
        elif type(layer) is nn.Linear and isinstance(last, Norm):
            kept[-1] = fold_before(last, layer)
        else:
            kept.append(layer)
    return nn.Sequential(*kept)


def factors(norm: Norm) -> tuple[Tensor, Tensor]:
    """(C,) scale and (C,) shift: what a batch norm does in evaluation is x * scale + shift."""
    if norm.running_mean is None or norm.running_var is None:
        raise PlaitError("got a batch norm without running statistics, expected some: it cannot be folded")
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    return scale, norm.bias - norm.running_mean * scale


def fold_after(layer: Foldable, norm: Norm) -> Foldable:
    """One layer for `layer`, then the batch norm `norm`."""
    scale, shift = factors(norm)
    bias = shift if layer.bias is None else layer.bias * scale + shift
    return with_weights(layer, layer.weight * scale.view(-1, *[1] * (layer.weight.dim() - 1)), bias)


def fold_before(norm: Norm, layer: Foldable) -> Foldable:
    """One layer for the batch norm `norm`, then `layer`: a linear layer or a convolution of one place and one group."""
    scale, shift = factors(norm)
    bias = layer.weight.flatten(1) @ shift
    weight = layer.weight * scale.view(1, -1, *[1] * (layer.weight.dim() - 2))
    return with_weights(layer, weight, bias if layer.bias is None else layer.bias + bias)


def with_weights(layer: Foldable, weight: Tensor, bias: Tensor) -> Foldable:
    """A layer as `layer` is, with these weights; a convolution's kernel may have another size, its padding keeps the
    places."""
    new: Foldable
    if isinstance(layer, nn.Linear):
        new = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    else:
        stride, dilation, before, old = (
            cast(tuple[int, int], pair) for pair in (layer.stride, layer.dilation, layer.padding, layer.kernel_size)
        )
        high, wide = weight.shape[2:]
        padding = before[0] + (high - old[0]) // 2, before[1] + (wide - old[1]) // 2
        new = nn.Conv2d(
            layer.in_channels, len(weight), (high, wide), stride, padding, dilation, layer.groups, device="meta"
        )
    new.weight, new.bias = nn.Parameter(weight.contiguous()), nn.Parameter(bias)
    return new.eval()
