"""All tasks by name, as their files declare them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from plait.data.schema import Schema
from plait.errors import UsageError
from plait.tasks import CHOICES
from plait.tasks.base import Task
from plait.tasks.classify import Classify
from plait.tasks.ordinal import Ordinal
from plait.tasks.regress import Regress

TASKS: dict[str, type[Task]] = {
    task.name: task for choice in CHOICES for task in import_module(f"plait.tasks.{choice}").TASKS
}


def guess_task(schema: Schema) -> str:
    """The task that the target's kind asks for."""
    if not schema.targets:
        alone = " or ".join(f"--task {t.name}" for t in TASKS.values() if not t.needs_target)
        raise UsageError(f"no target: name the column to predict with --target, or pair two columns with {alone}")
    number = all(column.kind in ("number", "datetime") for column in schema.used("target"))
    if [column.kind for column in schema.used("target")] == [Ordinal.asks]:
        return Ordinal.name
    return Regress.name if number else Classify.name


def nouns(wanted: Callable[[type[Task]], bool]) -> str:
    """What the tasks that are `wanted` are called, as in "transcription and captions"."""
    *names, last = dict.fromkeys(t.noun for t in TASKS.values() if wanted(t))
    return f"{', '.join(names)} and {last}" if names else last
