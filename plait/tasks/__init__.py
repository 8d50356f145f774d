"""Tasks: what a table's columns ask of a model. Each owns its head, loss, metrics and picture.

A new one is a file here, a class under `base.Task` that says what it must and where it differs, and a line in TASKS.
"""

from __future__ import annotations

from collections.abc import Callable

from plait.data.schema import Schema
from plait.errors import UsageError
from plait.tasks.base import Task
from plait.tasks.caption import Caption
from plait.tasks.classify import Classify, ClassifyMany
from plait.tasks.match import Match
from plait.tasks.regress import Regress
from plait.tasks.retrieve import Retrieve
from plait.tasks.transcribe import Transcribe

TASKS: dict[str, type[Task]] = {
    t.name: t for t in (Classify, ClassifyMany, Regress, Retrieve, Match, Transcribe, Caption)
}
CHOICES = tuple(dict.fromkeys(t.choice for t in TASKS.values()))  # what --task can name


def guess_task(schema: Schema) -> str:
    """The task that the target's kind asks for."""
    if not schema.targets:
        alone = " or ".join(f"--task {t.name}" for t in TASKS.values() if not t.needs_target)
        raise UsageError(f"no target: name the column to predict with --target, or pair two columns with {alone}")
    number = schema.used("target")[0].kind in ("number", "datetime") and len(schema.targets) == 1
    return Regress.name if number else Classify.name


def nouns(wanted: Callable[[type[Task]], bool]) -> str:
    """What the tasks that are `wanted` are called, as in "transcription and captions"."""
    return " and ".join(dict.fromkeys(t.noun for t in TASKS.values() if wanted(t)))


__all__ = ["CHOICES", "TASKS", "Task", "guess_task", "nouns"]
