"""Several trainings of one run, each from a seed of its own, that answer together by their mean (Lakshminarayanan,
Pritzel and Blundell, "Simple and scalable predictive uncertainty estimation using deep ensembles", 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from plait.errors import UsageError
from plait.runs.console import Console
from plait.runs.job import TableJob
from plait.runs.manifest import SEEDS
from plait.runs.prepare import Prepared
from plait.runs.settings import Settings
from plait.tasks.base import Task
from plait.tasks.rowwise import Answer, AnswerTask
from plait.train import checkpoint
from plait.train.loop import Plan, train


def refuse_seeds(settings: Settings, task: Task, data: Prepared) -> None:
    """Raises UsageError where answers have no mean, or a training does not begin from its seed alone."""
    if settings.seeds == 1:
        return
    if not (isinstance(task, AnswerTask) and task.pools):
        raise UsageError(
            f"seeds: several models answer by the mean of their probabilities or numbers, and {task.noun} has none: "
            "leave out --seeds"
        )
    if data.towers or settings.parts:
        what = "--tower (or --pretrained)" if data.towers else "--part"
        raise UsageError(f"seeds and {what} do not go together: leave one of them out")


def train_others(
    job: TableJob, plan: Plan, settings: Settings, folder: Path, member: Callable[[int], Answer],
    device: torch.device, console: Console,
) -> list[Answer] | None:  # fmt: skip
    """The models of all seeds but the first, trained as that of `job` was, beside the same simple models; None:
    interrupted. member(seed): a model before its training. Each has a folder of checkpoints, from which one that was
    ended goes on, and one that is done is only read."""
    found = []
    for i in range(1, settings.seeds):
        seed, place = settings.seed + i, folder / SEEDS / str(settings.seed + i)
        twin = job.again(member(seed), job.batch_size)
        twin.seed, twin.share = seed, job
        console.start(f"seed {i + 1} of {settings.seeds}", plan.epochs * twin.steps_per_epoch)
        try:
            again = checkpoint.exists(place)
            history = train(twin, replace(plan, seed=seed), place, resume=again, progress=console, device=str(device))
        finally:
            console.stop()
        if history.stopped == "interrupted":
            return None
        assert isinstance(twin.model, Answer)
        found.append(twin.model)
    return found
