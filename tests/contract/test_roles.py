"""A model has what its roles promise: the attributes, and the methods with the protocol's own signatures."""

from __future__ import annotations

import importlib
import inspect
import types
import typing

import pytest
from torch import Tensor, nn

from plait.core.catalog import build, systems
from plait.core.roles import ROLES, Backbone
from plait.core.tokens import Tokens
from plait.tasks import CHOICES, roles_for
from plait.tasks.bind import BINDERS
from plait.tasks.registry import TASKS

PAIRS = [(system, role) for system in systems().values() for role in system.roles]


def fits(given: object, wanted: object) -> bool:
    """Whether a type is the wanted one, or says more: dict[str, Tensor] where dict is wanted, anything for Any."""
    given, wanted = (type(None) if t is None else t for t in (given, wanted))
    if wanted is typing.Any or given == wanted:
        return True
    if isinstance(wanted, types.UnionType) or isinstance(given, types.UnionType):
        return set(typing.get_args(given)) == set(typing.get_args(wanted))
    inner = list(zip(typing.get_args(given), typing.get_args(wanted)))
    return (typing.get_origin(given) or given) == (typing.get_origin(wanted) or wanted) and all(
        fits(a, b) for a, b in inner
    )


def breaches(model: object, protocol: type) -> list[str]:
    """What of the protocol's methods the model's own do not keep to."""
    found = []
    for name, wanted in vars(protocol).items():
        if name.startswith("_") or not inspect.isfunction(wanted):
            continue
        own = getattr(type(model), name)
        have, want = (list(inspect.signature(f).parameters.values()) for f in (own, wanted))
        hints, expected = typing.get_type_hints(own), typing.get_type_hints(wanted)
        for mine, theirs in zip(have, want):
            if theirs.kind is not inspect.Parameter.POSITIONAL_ONLY and mine.name != theirs.name:
                found.append(f"{name}: {mine.name} for {theirs.name}")
            if mine.default != theirs.default:
                found.append(f"{name}: {mine.name} has another default")
            if theirs.name != "self" and not fits(hints.get(mine.name), expected[theirs.name]):
                found.append(f"{name}: {mine.name} is {hints.get(mine.name)}, not {expected[theirs.name]}")
        if len(have) < len(want) or any(p.default is inspect.Parameter.empty for p in have[len(want) :]):
            found.append(f"{name}: takes {len(have)}, not {len(want)}")
        if not fits(hints.get("return"), expected["return"]):
            found.append(f"{name}: gives {hints.get('return')}, not {expected['return']}")
    return found


@pytest.mark.parametrize("system, role", PAIRS, ids=[f"{s.name}-{r}" for s, r in PAIRS])
def test_the_model_keeps_the_protocols_of_its_roles(system, role):
    model = build(f"{system.name}_toy")
    assert isinstance(model, ROLES[role])
    assert breaches(model, ROLES[role]) == []


def test_a_model_that_does_not_is_found_out():
    class Wrong(nn.Module):
        takes, fits, width = ("image",), (), 8

        def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
            return x

        def tokens(self, x: Tensor, mask: Tensor | None = None) -> Tokens:
            return Tokens(x)

        def pool(self, t: Tensor) -> Tensor:
            return t

    assert isinstance(Wrong(), Backbone)
    assert len(breaches(Wrong(), Backbone)) == 2
    del Wrong.pool
    assert not isinstance(Wrong(), Backbone)


def test_every_role_is_bound_and_used_by_a_task():
    assert BINDERS.keys() == ROLES.keys()
    assert {role for task in TASKS.values() for role in task.roles} == set(ROLES)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_says_its_roles_once(task):
    assert task in importlib.import_module(f"plait.tasks.{task.choice}").TASKS and task.choice in CHOICES
    assert task.roles == roles_for(task.choice) and set(task.roles) <= set(ROLES)
