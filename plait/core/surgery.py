"""Changes to a finished model that can be taken back without a trace."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def freeze(module: nn.Module) -> Callable[[], None]:
    """No parameter of `module` takes a gradient any more. Returns the undo, which restores each one's own setting."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    for p, _ in before:
        p.requires_grad_(False)

    def undo() -> None:
        for p, wanted in before:
            p.requires_grad_(wanted)

    return undo
