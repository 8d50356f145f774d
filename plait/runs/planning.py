"""How long, how fast and on what: the plan of a run, and what it will cost, from the data and two measured steps."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import torch

from plait.errors import UsageError
from plait.parts.objectives.cached import apart
from plait.runs.folds import Folds
from plait.runs.job import TableJob
from plait.runs.prepare import Prepared
from plait.runs.settings import Settings
from plait.tasks.base import Task, TaskModel
from plait.tasks.beneath import Ladder, Several
from plait.tasks.rowwise import AnswerTask
from plait.train import optim
from plait.train.loop import Plan
from plait.train.memory import peak_memory
from plait.train.parallel import to_device

TRIED = 8  # steps that measuring a precision takes
LEAST_GAIN = 1e-4  # of accuracy, or of the variance: less is not waited for where simple models stand beneath
LITTLE = 0.01  # of the loss without any input: where simple models leave no more, a network can add next to nothing


def make_plan(settings: Settings, data: Prepared, model: TaskModel, device: torch.device) -> Plan:
    """Epochs, batch and rate from the number of rows, where the settings leave them open."""
    n = len(data.splits["train"])
    pace = data.task.pace(n, model.bound.system, data.info.system.name == "auto")
    batch, epochs = min(settings.batch_size or pace.batch, n), settings.epochs or pace.epochs
    lr = settings.lr or pace.lr * (0.1 if data.pretrained else 1.0)
    plan = Plan(
        epochs=epochs,
        batch_size=batch,
        lr=lr,
        weight_decay=settings.weight_decay,
        warmup=pace.warmup,
        ema=pace.ema if settings.ema is None else settings.ema,
        # a network that simple models stand beneath soon shows whether it adds anything to them
        patience=settings.patience or (epochs if pace.patient else max(10, epochs // (8 if data.laddered else 4))),
        least_gain=LEAST_GAIN if data.laddered else 0.0,
        least_alone=max(LEAST_GAIN, 0.5 / max(len(data.splits["val"]), 1)) if data.laddered else 0.0,
        enough=faultless(data.task) if data.laddered and settings.patience is None else None,
        minutes=minutes_each(settings, bool(data.towers), bool(data.folds)),
        seed=settings.seed,
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    plan.precision = precision_for(settings, data, model, plan, device)
    return plan


def micro_batch(settings: Settings, task: Task, model: TaskModel) -> int | None:
    """Rows that are read at a time. Raises UsageError where pieces of a batch do not add up to it, or need not."""
    if settings.micro_batch is None:
        return None
    if model.whole:
        raise UsageError(f"micro_batch is for --task retrieve, and match by vectors; in {task.noun} {model.whole}")
    apart(model)
    return settings.micro_batch


def faultless(task: Task) -> float | None:
    """The guide that no epoch can surpass, where there is one."""
    return task.faultless if isinstance(task, AnswerTask) and task.metric is None else None


def shortened(settings: Settings, plan: Plan, ladder: Ladder | Several | None) -> Plan:
    """The plan, with no more epochs than those without a gain that are waited for, where simple models leave next to
    nothing to gain."""
    left = None if ladder is None else ladder.left
    if settings.epochs or left is None or left > LITTLE or plan.patience is None or plan.patience >= plan.epochs:
        return plan
    return replace(plan, epochs=plan.patience)


def shortened_cost(cost: dict, plan: Plan, short: Plan) -> dict:
    """What `estimate` said of `plan`, of the shortened one; folds cost what they cost."""
    folds, share = cost["folds_seconds"], short.epochs / plan.epochs
    return cost | {"seconds": folds + (cost["seconds"] - folds) * share, "steps": round(cost["steps"] * share)}


def minutes_each(settings: Settings, towers: bool, folds: bool) -> float | None:
    """Of the time budget, what one training has: seeds share it; with towers several fits do, of which one is without,
    and folds take a half; where there are folds, towers do not learn."""
    fits = 1 + (1 if folds else settings.rungs) if towers else 1
    return settings.minutes and settings.minutes / fits / settings.seeds / (2 if folds else 1)


def precision_for(settings: Settings, data: Prepared, model: TaskModel, plan: Plan, device: torch.device) -> str:
    """The one that the settings name, or that steps on training rows are faster in."""
    if settings.precision != "auto":
        return settings.precision
    index = data.splits["train"]
    if plan.epochs * -(-len(index) // plan.batch_size) < TRIED:
        return "fp32"  # to measure which is faster would take longer than all the steps
    sample = data.rows.batch(index[: plan.batch_size])
    return optim.pick_precision(copy.deepcopy(model), to_device(sample, device), device)


def estimate(job: TableJob, plan: Plan, device: torch.device, folds: Folds, seeds: int = 1) -> dict:
    """Parameters, seconds for all steps (from at most three measured ones), those of the folds among them, and memory,
    before anything is trained."""
    model = copy.deepcopy(job.model).to(device)  # and its state: a trial step must leave no trace
    generator = torch.Generator(device)
    taken = []
    with torch.random.fork_rng([]), torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
        for i in range(min(3, plan.epochs * job.steps_per_epoch)):
            rows = job.index[i * plan.batch_size : (i + 1) * plan.batch_size]
            batch = to_device(job.batch(rows if len(rows) == plan.batch_size else job.index[: plan.batch_size]), device)
            begun = time.perf_counter()
            sum(model(batch, generator.manual_seed(0)).values()).backward()
            taken.append(time.perf_counter() - begun)
            model.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in model.parameters())
    taken = taken[1:] or taken  # the first one is slow
    seconds = sum(taken) / len(taken) * plan.epochs * job.steps_per_epoch * 1.2
    if plan.minutes:
        seconds = min(seconds, plan.minutes * 60)
    seconds, parameters = seconds * seeds, parameters * seeds
    apart = seconds * len(folds) * (1 - 1 / folds.count) if folds else 0.0
    if plan.minutes and folds:
        apart = min(apart, plan.minutes * 60 * seeds)
    # the optimizer's two averages and the best weights are yet to come
    memory = peak_memory(device) / 1e9 + 12 * parameters / 1e9
    return {
        "parameters": parameters,
        "seconds": seconds + apart,
        "folds_seconds": apart,
        "memory_gb": memory,
        "steps": plan.epochs * job.steps_per_epoch,
    }
