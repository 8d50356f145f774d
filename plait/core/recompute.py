"""Layers that are computed again in the backward pass, so that their inner activations need not be kept."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from plait.core.block import Layer
from plait.core.surgery import Undo
from plait.core.tokens import Tokens
from plait.errors import PlaitError


def recompute(model: nn.Module, *, reentrant: bool = False) -> Undo:
    """From now on every outermost `Layer` of `model` recomputes in the backward pass; gradients stay the same, memory
    falls and a step takes a forward pass more. reentrant: torch's older way, for what the newer cannot.

    Returns the undo. Raises ValueError for a model without layers.
    """
    layers = _outermost(model)
    if not layers:
        raise PlaitError(f"{type(model).__name__} has no Layer to recompute: expected a model that is made of them")
    for layer in layers:
        vars(layer)["forward"] = _Recomputed(layer, reentrant)  # before its class's own

    def undo() -> None:
        for layer in layers:
            del vars(layer)["forward"]

    return undo


class _Recomputed:
    """The forward of `layer`; an object, so that a copy of the layer has a copy of this."""

    def __init__(self, layer: Layer, reentrant: bool):
        self.layer, self.reentrant = layer, reentrant

    def __call__(self, t: Tokens) -> Tokens:
        # Flat, because the reentrant way sees no tensors inside of a tuple, and would train nothing in silence.
        leaves, inside = pytree.tree_flatten(t)
        places = _tensors(leaves)
        found: list[Any] = []

        def run(*tensors: Tensor) -> tuple[Tensor, ...]:
            given = pytree.tree_unflatten(_filled(leaves, places, tensors), inside)
            found[:] = pytree.tree_flatten(type(self.layer).forward(self.layer, given))
            return tuple(found[0][i] for i in _tensors(found[0]))

        tensors = checkpoint(run, *(leaves[i] for i in places), use_reentrant=self.reentrant)
        after, outside = found
        return pytree.tree_unflatten(_filled(after, _tensors(after), tensors), outside)


def _tensors(leaves: list) -> list[int]:
    return [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]


def _filled(leaves: list, places: list[int], tensors: tuple[Tensor, ...]) -> list:
    full = list(leaves)
    for i, tensor in zip(places, tensors, strict=True):
        full[i] = tensor
    return full


def _outermost(module: nn.Module) -> list[Layer]:
    if isinstance(module, Layer):
        return [module]
    return [layer for child in module.children() for layer in _outermost(child)]
