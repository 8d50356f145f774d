"""Tasks: what a table's columns ask of a model. Each owns its head, loss, metrics and picture.

A new one is a file here, whose name is what `--task` calls it, and a line in CHOICES. The file declares ROLES (which it
can use, the best first), TAKES (modalities without which there is nothing to do, if any; of several in a tuple one is
enough) and TASKS (its classes, each a `base.Task`). What is asked of no table is answered here, from
the files' text, so that listing needs no torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from plait.core import catalog
from plait.core.literals import literals
from plait.errors import UsageError, nearest

CHOICES = (
    "classify",
    "ordinal",
    "regress",
    "retrieve",
    "match",
    "transcribe",
    "caption",
    "write",
    "answer",
    "recall",
    "restore",
    "generate",
    "act",
    "detect",
    "pretrain",
)


@cache
def declared(task: str) -> dict:
    """What a task's file declares in literals. Raises UsageError for a task that does not exist."""
    if task not in CHOICES:
        raise UsageError(f"unknown task {task!r}. {nearest(task, CHOICES)}")
    return literals(ast.parse((Path(__file__).parent / f"{task}.py").read_text(encoding="utf-8")))


def roles_for(task: str) -> tuple[str, ...]:
    """The roles that a task can use. Raises UsageError for one that does not exist."""
    return declared(task)["ROLES"]


def reads_for(task: str, takes: Iterable[str]) -> bool:
    """Whether who reads the modalities `takes` reads what the task is of."""
    needed, given = declared(task).get("TAKES", ()), set(takes)
    return all(given & ({need} if isinstance(need, str) else set(need)) for need in needed)


def tasks_of(info: catalog.ModelInfo) -> tuple[str, ...]:
    """The tasks that a model can do: it has one of the roles, and reads what the task is of."""
    return _done_by(frozenset(info.roles), frozenset(info.takes))


@cache
def _done_by(roles: frozenset[str], takes: frozenset[str]) -> tuple[str, ...]:
    return tuple(task for task in CHOICES if roles & set(roles_for(task)) and reads_for(task, takes))


def list_models(
    pattern: str = "*", *, takes: Iterable[str] | None = None, task: str | None = None, toys: bool = False
) -> list[str]:
    """Names of all sizes of all systems that match `pattern` (shell wildcards), read every modality in `takes` and can
    do `task`. Raises UsageError for a task that does not exist."""
    wanted = {takes} if isinstance(takes, str) else set(takes or ())
    if task is None:
        return catalog.list_models(pattern, takes=wanted, toys=toys)
    able = catalog.list_models(pattern, takes=wanted, roles=roles_for(task), toys=toys)
    return [name for name in able if reads_for(task, catalog.model_info(name).takes)]
