"""The main job: a table in, a trained and evaluated model out."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plait import __version__
from plait.errors import DataError, UsageError
from plait.evaluate.intervals import number
from plait.tasks import Retrieve
from plait.tasks.bind import Bound
from plait.tasks.linear import solve_straight
from plait.train import optim
from plait.train.assemble import Recipe, objective, recipe
from plait.train.assess import Assessment, assess
from plait.train.console import Console, clock
from plait.train.job import TableJob, answers_for
from plait.train.loop import Plan, train
from plait.train.pages import Ran, report
from plait.train.predict import outputs, to_device
from plait.train.prepare import Prepared, prepare
from plait.train.run import Run, save_run, write_json
from plait.train.settings import Settings

CONFIG = "config.json"


def fit(
    source: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
    **options,
) -> Run | dict:
    """Train a model on a table and write a run folder.

    Args:
        source: a CSV, TSV, Parquet or JSON-lines file, a folder of class folders, or a pandas / polars / pyarrow / datasets table.
        out: the run folder; default runs/NAME after the source. It must be new, or one to resume.
        resume: go on with the run in `out`: its settings are read there, and `source` may be left out if it was a file.
        dry_run: stop before training and return what would be done as a dict.
        console: where lines and progress go; default is standard error.
        options: the fields of `plait.train.settings.Settings`, such as target="price", kinds={"photo": "image"}, minutes=10.

    Returns the `Run`, ready to evaluate, predict, embed and search. Raises UsageError or DataError before any training for what
    cannot work; a run that is interrupted is saved and says how to go on (`Run.stopped` is "interrupted").
    """
    console = console or Console()
    try:
        settings = Settings(**options)
    except TypeError as error:
        raise UsageError(str(error).replace("Settings.__init__()", "fit()")) from error
    before = None
    if resume:
        before = read_config(out)
        settings = _resumed(before, options)
        source = before["source"] if source is None else source
        if source is None:
            raise UsageError("this run was trained on a table in memory: pass that table again to resume it")
    if source is None:
        raise UsageError("no table: give a file, a folder or a data frame")
    data = prepare(source, settings, console)
    if before and before["fingerprint"] != data.fingerprint:
        raise DataError(f"the table is not the one that {out} was trained on: its rows differ, so resuming would mix two runs")
    made = Recipe(**before["recipe"]) if before else recipe(data.info, data.schema, data.task.name, pretrained=bool(settings.pretrained))
    bound = made.build(seed=settings.seed, pretrained=settings.pretrained if not before else False)
    model, state, advance = _model(data, bound, settings.seed)
    device = pick_device(settings.device)
    plan = Plan(**before["plan"]) if before else make_plan(settings, data, model, device)
    job = TableJob(
        model,
        data,
        batch_size=plan.batch_size,
        seed=settings.seed,
        strength=settings.augment,
        precision=plan.precision,
        state=state,
        advance=advance,
    )
    cost = estimate(job, plan, device)
    announce(console, data, made, plan, cost)
    if dry_run:
        return {"columns": data.schema.describe(), "check": data.check, "splits": _sizes(data), "plan": asdict(plan), "cost": cost}
    folder = Path(out) if out else free_folder(source)
    if before is None:
        _claim(folder)
        write_json(folder / CONFIG, config(source, settings, data, made, plan))
    return _train(job, plan, made, settings, folder, device, cost, console, resume)


def _train(job: TableJob, plan: Plan, made: Recipe, settings: Settings, folder: Path, device, cost: dict, console: Console, resume) -> Run:
    data = job.data
    write_json(folder / "schema.json", data.schema.to_json())
    data.rows.bad.write(folder / "bad_rows.parquet")
    if isinstance(job.model, nn.Module) and hasattr(job.model, "state") and job.state is not None:
        job.model.state[:] = [job.state]
    console.start("training", plan.epochs * job.steps_per_epoch)
    begun = time.monotonic()
    try:
        history = train(job, plan, folder, resume=resume, progress=console, device=str(device))
    finally:
        console.stop()
    job.seconds["training in all"] = time.monotonic() - begun
    if history.stopped == "interrupted":
        console.say("stopped", f"interrupted after {len(history.rows)} epochs; saved. To go on: plait fit --resume {folder}")
        return Run(folder, data.schema, data.task, job.model, plan.precision, stopped="interrupted")
    settle(job, console)
    run = save_run(folder, data.schema, data.task, job.model, plan.precision)
    run.history = history
    for name, index in evaluated_rows(data).items():
        run.assessments[name] = assess(run.model, data.task, data.rows, data.schema, data.truth, index, plan.precision)
        tell(console, run.assessments[name], name, data.task)
    timing = slowest(job.seconds)
    if timing:
        console.say("", f"slowest part: {timing}")
    scores = {name: found.to_json() for name, found in run.assessments.items()}
    facts = {"stopped": history.stopped, "splits": scores, "cost": cost, "seconds": dict(job.seconds)}
    write_json(folder / "report.json", facts)
    ran = Ran(data, made, plan, settings, history, run.assessments, cost, dict(job.seconds), machine(device), command())
    run.report = partial(report, folder / "report.html", ran)
    run.report()
    verb = "search" if isinstance(data.task, Retrieve) else "predict"
    console.say("saved", f"{folder} (report.html)    next: plait {verb} {folder} ...")
    return run


def _model(data: Prepared, bound: Bound, seed: int):
    """The task's model, and the state and step of the system's own objective, if it has one and the task uses it."""
    goal, make_state, advance = objective(data.info)
    if isinstance(data.task, Retrieve):
        state = make_state(bound.system, seed) if goal and make_state else None
        return data.task.model(bound, goal), state, advance if state is not None else None
    model = data.task.model(bound)
    solve_straight(model, data.rows, data.truth, data.splits["train"], seed)
    return model, None, None


def settle(job: TableJob, console: Console) -> None:
    """Leave a plain table to the head's linear layers, unless what was trained beside them is better by two standard errors."""
    data, kinds = job.data, {s.kind for s in job.data.schema.slots}
    if isinstance(data.task, Retrieve) or not job.model.head.linear or not kinds <= {"number", "category", "vector"}:
        return
    truth = data.truth[job.watch]
    whole = answers_for(data.task, job.model, data, job.watch, job.precision)
    straight = data.task.finish(outputs(job.model, data.rows, job.watch, call=lambda m, b: m.straight(b)))
    gain = data.task.loss_rows(truth, straight) - data.task.loss_rows(truth, whole)
    if gain.mean() < 2 * gain.std() / max(len(gain) - 1, 1) ** 0.5:
        with torch.no_grad():
            job.model.head.quiet()
        console.say("", "the linear part alone is as good on the validation rows: it answers")


def make_plan(settings: Settings, data: Prepared, model: nn.Module, device: torch.device) -> Plan:
    """Epochs, batch and rate from the number of rows, where the settings leave them open."""
    n, retrieve = len(data.splits["train"]), isinstance(data.task, Retrieve)
    batch = settings.batch_size or (256 if retrieve else 32 if n < 1500 else 64 if n < 10_000 else 128)
    batch = min(batch, n)
    epochs = settings.epochs or int(np.clip(round(80_000 / n), 8, 150))
    own = data.info.system.name == "auto"
    lr = settings.lr or (1e-3 if own else 5e-4) * (0.1 if settings.pretrained else 1.0)
    plan = Plan(
        epochs=epochs,
        batch_size=batch,
        lr=lr,
        weight_decay=settings.weight_decay,
        ema=settings.ema,
        patience=settings.patience or max(10, epochs // 4),
        minutes=settings.minutes,
        seed=settings.seed,
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    plan.precision = settings.precision
    if plan.precision == "auto":
        index = data.splits["train"][:batch]
        sample = data.rows.batch(index) | {"target": torch.from_numpy(data.truth[index])}
        plan.precision = optim.pick_precision(model, to_device(sample, device), device)
    return plan


def estimate(job: TableJob, plan: Plan, device: torch.device) -> dict:
    """Parameters, seconds for all steps (from two measured ones) and memory, before anything is trained."""
    model = job.model.to(device)
    batch = to_device(job.batch(job.index[: plan.batch_size]), device)
    generator = torch.Generator(device)
    taken = []
    with torch.random.fork_rng([]), torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
        for _ in range(3):
            begun = time.perf_counter()
            sum(model(batch, generator.manual_seed(0)).values()).backward()
            taken.append(time.perf_counter() - begun)
            model.zero_grad(set_to_none=True)
    parameters = sum(p.numel() for p in model.parameters())
    seconds = min(taken[1:]) * plan.epochs * job.steps_per_epoch * 1.2
    if plan.minutes:
        seconds = min(seconds, plan.minutes * 60)
    memory = _memory() + 12 * parameters / 1e9  # the optimizer's two averages and the best weights are yet to come
    return {"parameters": parameters, "seconds": seconds, "memory_gb": memory, "steps": plan.epochs * job.steps_per_epoch}


def announce(console: Console, data: Prepared, made: Recipe, plan: Plan, cost: dict) -> None:
    """What will be done, before it is done."""
    console.say("columns", " | ".join(column_lines(data)))
    for c in data.schema.used("ignored"):
        console.say("left out", f"{c.name}: {c.why}")
    for remark in data.remarks():
        console.say("careful", remark)
    name = " with ".join(data.task.names) if isinstance(data.task, Retrieve) else f"{data.task.target}: {data.task.describe()}"
    console.say("target", f"{name}     split {' / '.join(f'{k} {v:,}' for k, v in _sizes(data).items())}, seed {plan.seed}")
    console.say(
        "model",
        f"{made.name}: {cost['parameters'] / 1e6:.1f} M parameters, about {cost['memory_gb']:.1f} GB, about {clock(cost['seconds'])} for "
        f"{plan.epochs} epochs of {len(data.splits['train']):,} rows in {'bfloat16' if plan.precision == 'bf16' else 'float32'}",
    )


def column_lines(data: Prepared) -> list[str]:
    """What each input column holds; more than six plain ones without a fault share a line."""
    there = data.rows.presence()
    slot_of = {c: s.name for s in data.schema.slots for c in s.columns}
    lines, whole = [], {}
    for c in data.schema.used("input"):
        bad = sum(data.rows.bad.by_reason(c.name).values())
        nulls = data.table.column(c.name).null_count
        if not nulls and not bad and c.kind in ("number", "category", "boolean", "datetime"):
            whole.setdefault(c.kind, []).append(c.name)
            continue
        media = c.kind in ("image", "audio", "text", "vector")
        fine = int(there[slot_of[c.name]].sum()) if media else len(data.table) - nulls - bad
        more = [f"{nulls:,} missing"] * (nulls > 0) + [f"{bad:,} bad (bad_rows.parquet)"] * (bad > 0)
        more += [f"{n:,} {remark}" for remark, n in data.rows.notes.get(c.name, {}).items()]
        lines.append(", ".join([f"{c.name} {c.kind} {fine:,} ok", *more]))
    for kind, names in whole.items():
        shown = ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])} and {len(names) - 3} more"
        lines.append(f"{shown} {kind}")
    return lines


def tell(console: Console, found: Assessment, name: str, task) -> None:
    """The score, and what it is worth."""
    main = found.scores[0]
    chance = {s.name: s.value for s in found.baseline}
    if isinstance(task, Retrieve):
        for s in found.scores:
            if "recall" in s.name:
                console.say(name, f"{s}   chance {number(chance[s.name])}")
        return
    alone = "".join(f"   {k} only {number(s.value)}" for k, s in found.alone.items())
    gain = f"   gain of fusion {found.gain.value:+.3f} [{found.gain.low:+.3f}, {found.gain.high:+.3f}]" if found.gain else ""
    usual = f"   majority {number(chance[main.name])}" if main.name in chance else ""
    console.say(name, f"{main}{usual}{alone}{gain}")
    if found.absent:
        console.say("absent", "   ".join(f"no {k} {number(s.value)}" for k, s in found.absent.items()))


def evaluated_rows(data: Prepared) -> dict[str, np.ndarray]:
    """The rows that the report speaks of: the test rows and those of other splits never trained on; failing these, the validation rows."""
    held = {name: rows for name, rows in data.splits.items() if name not in ("train", "val") and len(rows)}
    for name in ("val", "train"):
        if not held:
            held = {name: data.splits[name]} if len(data.splits[name]) else {}
    return held


def slowest(seconds: dict) -> str:
    """The largest of the measured parts, beside the model's own share."""
    total = seconds.get("training in all", 0.0)
    parts = {k: v for k, v in seconds.items() if k != "training in all"}
    parts["the model"] = max(0.0, total - sum(parts.values()))
    name = max(parts, key=parts.get)
    return f"{name} {parts[name] / total:.0%}" if total > 1 else ""


def config(source: Any, settings: Settings, data: Prepared, made: Recipe, plan: Plan) -> dict:
    """What the run folder remembers: enough to build the model, and to start or resume the same run."""
    return {
        "plait": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": str(Path(source).resolve()) if isinstance(source, (str, Path)) else None,
        "settings": settings.to_json(),
        "fingerprint": data.fingerprint,
        "recipe": asdict(made),
        "task": data.task.to_json(),
        "plan": asdict(plan),
        "splits": _sizes(data),
    }


def read_config(folder: str | Path | None) -> dict:
    """The config of a run folder. Raises UsageError where there is none."""
    path = Path(folder or "") / CONFIG
    if folder is None or not path.is_file():
        raise UsageError(f"{folder} is no run folder: it has no {CONFIG}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _resumed(before: dict, options: dict) -> Settings:
    free = {k: v for k, v in options.items() if k in ("workers", "device", "allow_outside")}
    fixed = sorted(options.keys() - free.keys())
    if fixed:
        raise UsageError(f"a resumed run keeps its settings: {', '.join(fixed)} cannot be given with --resume")
    return Settings.from_json(before["settings"] | free)


def free_folder(source: Any) -> Path:
    """runs/NAME, or runs/NAME-2 and so on where that is taken."""
    stem = Path(source).stem if isinstance(source, (str, Path)) else "table"
    stem = re.sub(r"[^\w.-]+", "_", stem) or "run"
    for i in range(1, 10_000):
        folder = Path("runs") / (stem if i == 1 else f"{stem}-{i}")
        if not folder.exists():
            return folder
    raise UsageError("runs/ is full of runs: give --out")


def _claim(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} already exists: give another --out, or --resume {folder} to go on with it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error}") from error


def pick_device(name: str) -> torch.device:
    """"auto" takes the accelerator of this machine, if there is one. Raises UsageError for a device that is not there."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    expected = "auto or cpu" if here.type == "cpu" else f"auto, cpu or {here.type}"
    if name == "auto":
        return here
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"unknown device {name!r}: expected {expected}") from None
    if device.type not in ("cpu", here.type) or (device.type != "cpu" and (device.index or 0) >= torch.accelerator.device_count()):
        raise UsageError(f"this machine has no device {name!r}: expected {expected}")
    return device


def machine(device: torch.device) -> str:
    where = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {device}"
    return f"{where}, torch {torch.__version__}, Python {platform.python_version()}"


def command() -> str:
    """The command line that started this, for the report."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else ["python"])


def _memory() -> float:
    """The most memory this process has held, in GB."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def _sizes(data: Prepared) -> dict[str, int]:
    return {k: len(v) for k, v in data.splits.items()}

