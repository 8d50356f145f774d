"""A model as plain JSON: which system, with which arguments, changed by which methods, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from plait.core.catalog import build
from plait.core.create import create_model
from plait.core.methods import Change, apply_methods, read_change, written


@dataclass(frozen=True)
class Recipe:
    """What makes the same model again. name: of a size; arguments: that override the size's; changes: methods with
    their options, each as `read_change` takes it. Raises PlaitError for a method or option that there is not."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    changes: Sequence[Change] = ()

    def __post_init__(self):
        object.__setattr__(self, "changes", tuple(read_change(c) for c in self.changes))

    @property
    def title(self) -> str:
        """What to call the model: "vit_toy + sinkformer:steps=3"."""
        return " + ".join([self.name, *map(written, self.changes)])

    def build(self, **how: Any) -> nn.Module:
        """The model, with first or published weights. how: what `create_model` takes beside arguments and changes.
        Published weights are loaded before the changes are made."""
        return create_model(self.name, changes=self.changes, **how, **self.arguments)

    def build_on_meta(self) -> nn.Module:
        """The model without storage: for weights of its own, which were saved after the changes."""
        return apply_methods(build(self.name, **self.arguments), self.changes)
