"""The main job: a table in, a trained and evaluated model out. Over 400 lines, as a run's life is told in one place."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, fields
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch

from plait import __version__
from plait.core.files import refuse_unwritable, sweep
from plait.core.init import initialise
from plait.core.weight_files import read_weights
from plait.core.weights import load_strict
from plait.errors import DataError, UsageError
from plait.evaluate.intervals import number
from plait.runs.assemble import BoundRecipe, objective
from plait.runs.assess import Assessment, assess
from plait.runs.beneath import climb, of_targets, relearn, rungs, write
from plait.runs.claim import claim, refuse_taken
from plait.runs.climb import CLIMBS, Climb
from plait.runs.console import Console
from plait.runs.declared import FORMAT, no_more_modules, of_file, read_config
from plait.runs.devices import machine, pick_device
from plait.runs.folder import CONFIG, MODEL, SCHEMA, read_json, write_json
from plait.runs.folds import FOLDS, Folds, Within
from plait.runs.job import TableJob
from plait.runs.judge import Stopped, evaluated_rows, judge, seen
from plait.runs.lock import locked
from plait.runs.manifest import check, forget, rewriting, seal
from plait.runs.pages import Ran, report
from plait.runs.planning import estimate, make_plan, micro_batch, minutes_each, shortened, shortened_cost
from plait.runs.predict import answered, outputs, watched
from plait.runs.prepare import Prepared, prepare, prepare_again
from plait.runs.run import Run
from plait.runs.rungs import ABOVE, BELOW, Rungs
from plait.runs.saved import save_run
from plait.runs.search import refuse_without, search
from plait.runs.seeds import refuse_seeds, train_others
from plait.runs.settings import IN_MEMORY, TABLES, Settings, told
from plait.runs.stored import read_stored, write_splits
from plait.runs.telling import announce, slowest, tell, tell_shortened
from plait.runs.towers import load_towers
from plait.tasks.base import Answers
from plait.tasks.rowwise import Answer, AnswerTask
from plait.train import checkpoint
from plait.train.loop import CHANGEABLE, METRICS, History, Plan, train

BAD = "bad_rows.parquet"


def fit(
    source: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
    console: Console | None = None,
    within: Within | None = None,
    **options,
) -> Run | dict:
    """Train a model on a table and write a run folder.

    Args:
        source: a file or several that `plait.data.table.read_table` reads (CSV, Parquet, JSON lines, workbooks,
        databases), a folder of class folders, or a pandas / polars / pyarrow / datasets table.
        out: the run folder; default runs/NAME after the source. It must be new, or one to resume.
        resume: go on with the run in `out`: its settings are read there, and `source` may be left out if it was a file.
        dry_run: stop before training and return what would be done as a dict.
        console: where lines and progress go; default is standard error.
        within: of a run that is part of another, as a fold of a small table is.
        options: the fields of `plait.runs.settings.Settings`, such as target="price", kinds={"photo": "image"},
        minutes=10.

    Returns the `Run`, ready to evaluate, predict, embed and search. Raises UsageError or DataError before any training
    for what cannot work; a run that is interrupted is saved and says how to go on (`Run.stopped` is "interrupted").
    """
    with ExitStack() as stack:
        return _fit(source, out, resume, dry_run, console or Console(), within, options, stack)


def _fit(
    source: Any,
    out: str | Path | None,
    resume: bool,
    dry_run: bool,
    console: Console,
    within: Within | None,
    options: dict,
    stack: ExitStack,
) -> Run | dict:
    """`fit`, with what ends with it on the stack."""
    if (several := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(
            f"plait fit works in one process, and was started as one of {several} (WORLD_SIZE): each would write a run "
            "of its own. Start it without torchrun or accelerate launch"
        )
    try:
        settings = Settings(**options)
    except TypeError as error:
        raise UsageError(str(error).replace("Settings.__init__()", "fit()")) from error
    before = None
    if resume:
        before, home = read_config(out), Path(out or "")
        if "rung" in before and not (home / MODEL).exists() and (home.parent / CONFIG).exists():
            raise UsageError(f"{out} is a rung of the run {home.parent}: plait fit --resume {home.parent}")
        stack.enter_context(locked(Path(out or ""), "resumed"))
        if used := before.get("used"):
            raise UsageError(
                f"{out} holds a model as it was published: to train on from its weights, "
                f"plait fit TABLE --system {used['name']} --pretrained"
            )
        settings = _resumed(before, options)
    elif out is not None:
        refuse_taken(Path(out))
    refuse_without(settings.trials)
    if not dry_run:
        refuse_unwritable(out or Path("runs"))
    if before is not None:
        source = before["source"] if source is None else source
        if source is None or (isinstance(source, str) and source == IN_MEMORY):
            raise UsageError("this run was trained on a table in memory: pass that table again to resume it")
    if source is None:
        raise UsageError("no table: give a file, a folder or a data frame")
    home = Path(out or "")
    claimed = cache(partial(claim, out, source, stack))
    held = before is not None and checkpoint.exists(home)  # what a checkpoint holds is neither read nor learnt
    changed = before is not None and "changed_from" in before  # begins with the weights that `change` left there
    if before is None:
        around = within.towers if within else None
        data = prepare(source, settings, console, around, within, None if dry_run else claimed)
        made = data.recipe(settings)
    else:
        finished = "rung" not in before or (home / MODEL).exists()  # all that towers learnt was written
        stored, towers = read_stored(home, before), load_towers(home, before, strict=finished)
        with of_file(home / CONFIG, "recipe"), no_more_modules():
            made = BoundRecipe(**before["recipe"])
            made.bind(made.build_on_meta())
        how: dict[str, Any] = dict(begun=held or changed, keep=not dry_run, within=within)
        data = prepare_again(source, settings, console, stored, towers, **how)
        if "rung" in before and not dry_run:
            return _climbed_on(home, before, data, options, settings, console)
    refuse_seeds(settings, data.task, data)
    start = {"pretrained": data.pretrained, "only": settings.only, "parts": data.parts.sources}
    begin: dict[str, Any] = start | {"scheme": settings.scheme}

    def framed(system: Any, seed: int) -> Any:
        """A model as it is before its training."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)  # of what a task puts around the system
            found = data.task.model(made.bind(system), objective(data.info))
        found.micro_batch = micro_batch(settings, data.task, found)
        found.before_training(data.rows, data.splits["train"], seed)
        return found

    def member(seed: int) -> Any:
        return framed(made.build(seed=seed, mmap=False, **begin), seed)

    if changed:
        system = initialise(made.build_on_meta(), seed=settings.seed)
    else:
        tell_weights = partial(console.say, "weights")
        system = made.build(seed=settings.seed, mmap=False, say=tell_weights, **({} if held else begin))
    model = framed(system, settings.seed)
    if changed and not held:
        check(home / MODEL)
        load_strict(model, dict(read_weights(Path(out or "") / MODEL).items()))
    device = pick_device(settings.device)
    anew = _anew(options, settings, data)
    plan = Plan(**before["plan"] | anew) if before else make_plan(settings, data, model, device)
    job = TableJob(
        model,
        data,
        batch_size=plan.batch_size,
        seed=settings.seed,
        strength=settings.augment,
        precision=plan.precision,
        changes=made.changes,
    )
    folds = data.folds if not changed else Folds()
    cost = estimate(job, plan, device, folds, settings.seeds)
    announce(console, data, made, plan, cost)
    if dry_run:
        return {
            "columns": data.schema.describe(),
            "check": data.check,
            "splits": data.sizes(),
            "folds": len(folds),
            "model": made.title,
            "plan": asdict(plan),
            "cost": cost,
        }
    folder = home if before else claimed()
    if before is None:
        data.towers.save(folder)
        write_splits(folder, len(data.rows), data.drawn, data.splits)
        folds.write(folder)
        write_json(folder / SCHEMA, data.schema.to_json())
        write_json(folder / CONFIG, config(source, settings, data, made, plan))  # the last: now it is a run
        seal(folder)
    if model.first and not held and not changed:
        console.say("first", model.first)
        model.to(device).learn_first(data.rows, data.splits["train"], settings.seed)
    judged = None
    if folds:
        try:
            judged = judge(data, settings, source, folder, plan.precision, device, console, fit)
        except Stopped as where:
            console.say("stopped", f"interrupted in {where}; saved. To go on: plait fit --resume {folder}")
            return Run(folder, data.schema, data.task, model, plan.precision, stopped="interrupted")
    job.coming = climb(model, data, folder, settings.seed, console)
    short = shortened(settings, plan, model.ladder)
    if short is not plan:
        cost, plan = shortened_cost(cost, plan, short), short
        with rewriting(folder / CONFIG):
            write_json(folder / CONFIG, read_json(folder / CONFIG) | {"plan": asdict(plan)})
        tell_shortened(console, plan, cost)
    if settings.trials and not held:
        job.laddered()
        if (found := search(job, plan, folder, settings.trials, device, console)) is None:
            return Run(folder, data.schema, data.task, model, plan.precision, stopped="interrupted")
        plan, job = found, job.again(model, found.batch_size)
    run = _train(job, plan, made, settings, folder, device, cost, console, resume, judged, within, member)
    if run.stopped == "interrupted":
        return run
    if data.towers and not changed:
        if os.name == "nt":
            stack.close()  # Windows renames no folder in which a file is open
        run = _weighed(run, job, source, settings, options, console, within)
    if run.stopped != "interrupted":
        for place in (folder, folder / ABOVE):  # the run that has them may be the one that does not answer
            shutil.rmtree(place / FOLDS, ignore_errors=True)
    return run


def _weighed(
    run: Run,
    job: TableJob,
    source: Any,
    settings: Settings,
    options: dict,
    console: Console,
    within: Within | None,
) -> Run:
    """The run on towers, or one from nothing where that is as good on the validation rows."""
    if not len(job.data.splits["val"]):
        said = "frozen towers answer; without validation rows nothing says what they gained"
        console.say("rungs", said)
        path = run.folder / "report.json"
        write_json(path, read_json(path) | {"rungs": {"answers": ABOVE, "why": said}})
        return run
    out, resume = run.folder / BELOW, (run.folder / BELOW / CONFIG).exists()
    how = {f.name: getattr(settings, f.name) for f in fields(Settings)} | {"pretrained": False, "towers": {}}
    how |= {"minutes": minutes_each(settings, True, bool(job.data.folds))}
    if resume:
        how = {k: how[k] for k in options}
    console.say("rungs", "the same from nothing, to see what the towers gain")
    within = Within(job.data.drawn, job.data.rows) if within or job.data.folds else None
    below = fit(source, out=out, resume=resume, console=Console(console.stream, quiet=True), within=within, **how)
    assert isinstance(below, Run)
    climbed, stopped = Rungs(job.data, console), below.stopped == "interrupted"
    if not stopped and FOLDS in run.assessments:  # which are of whichever answers
        below.assessments.clear()
        below.assessments.update(run.assessments)
        told, path = read_json(run.folder / "report.json")["splits"], below.folder / "report.json"
        with rewriting(path):
            write_json(path, read_json(path) | {"splits": told})
    if not stopped:
        climbed.add(BELOW, below)
        climbed.add(ABOVE, run)
    spent = sum(found.history.seconds for found in (run, below) if found.history)
    for rung in () if stopped else tuple(CLIMBS)[: settings.rungs - 1]:
        if job.data.folds:
            climbed.skip(rung, "folds judge this table, each by frozen towers: with --test or --split they would learn")
            continue
        device, anew = next(run.model.parameters()).device, _anew(options, settings, job.data)
        start, folder = climbed.start, run.folder / rung
        step = Climb(rung, start.model, start.towers, job.data, settings, folder, console, device, finish)
        found = step.begin(start.folder, spent, anew)
        if isinstance(found, str):
            climbed.skip(rung, found)
        elif stopped := found.stopped == "interrupted":
            break
        else:
            climbed.add(rung, found)
    if stopped:
        console.say("stopped", f"interrupted; saved. To go on: plait fit --resume {run.folder}")
        run.stopped = "interrupted"
        return run
    return climbed.settle(run)


def _climbed_on(home: Path, before: dict, data: Prepared, options: dict, settings: Settings, console: Console) -> Run:
    """A run whose towers learnt, trained on."""
    if not checkpoint.exists(home):
        raise DataError(f"{home} cannot go on: its towers learnt, and it has no checkpoint to train them on from")
    made = BoundRecipe(**before["recipe"])
    model = data.task.model(made.bind(initialise(made.build_on_meta())), objective(data.info))
    plan, device = Plan(**before["plan"] | _anew(options, settings, None)), pick_device(settings.device)
    towers = load_towers(home, before, adapted=False, strict=(home / MODEL).exists())
    run = Climb(before["rung"], model, towers, data, settings, home, console, device, finish).go_on(plan)
    if run.stopped == "interrupted":
        console.say("stopped", f"interrupted; saved. To go on: plait fit --resume {home}")
    return run


def _train(
    job: TableJob,
    plan: Plan,
    made: BoundRecipe,
    settings: Settings,
    folder: Path,
    device,
    cost: dict,
    console: Console,
    resume,
    judged: Assessment | None,
    within: Within | None,
    member: Callable[[int], Any],
) -> Run:
    data = job.data
    sweep(folder)
    forget(folder, METRICS, BAD)
    data.rows.bad.write(folder / BAD)
    console.start("training", plan.epochs * job.steps_per_epoch)
    begun = time.monotonic()
    try:
        history = train(job, plan, folder, resume=resume, progress=console, device=str(device))
    finally:
        console.stop()
    others: list | None = []
    if settings.seeds > 1 and history.stopped != "interrupted":
        others = train_others(job, plan, settings, folder, member, device, console)
    job.seconds["training in all"] = time.monotonic() - begun
    if history.stopped == "interrupted" or others is None:
        seal(folder)
        done = f"{len(history.rows)} epochs" if others is not None else "the training of the first seed"
        console.say("stopped", f"interrupted after {done}; saved. To go on: plait fit --resume {folder}")
        return Run(folder, data.schema, data.task, job.model, plan.precision, stopped="interrupted")
    if others:
        cast(Answer, job.model).join(others, cast(AnswerTask, data.task).pooled)
    if remark := settle(job):
        console.say("", remark)
    remarks, losses = calibrate(job), None
    if job.model.ladder is not None:
        losses = data.task.loss_rows(*answered(data.task, job.model, data.rows, job.watch, precision=plan.precision))
    try:
        write(job.model, folder)
        if unseen := relearn(job.model, data, folder, settings.seed, plan.precision):
            data.task.uncalibrate()
            remarks = data.task.calibrate(*unseen())
        run = save_run(folder, data.schema, data.task, job.model, plan.precision, data.towers)
    except DataError as error:
        raise DataError(
            f"{error}. What was trained is in the last checkpoint: make room, then plait fit --resume {folder}"
        ) from error
    for remark in remarks:
        console.say("", remark)
    run.losses = losses
    return finish(run, history, job.seconds, data, made, plan, settings, cost, device, console, judged, within)


def finish(
    run: Run, history: History, seconds: dict, data: Prepared, made: BoundRecipe, plan: Plan, settings: Settings,
    cost: dict, device: Any, console: Console, judged: Assessment | None = None, within: Within | None = None,
) -> Run:  # fmt: skip
    """A run that was just trained and saved: assessed, and reported on."""
    folder = run.folder
    run.history = history
    for name, index in evaluated_rows(data).items() if judged is None else ():
        run.assessments[name] = assess(
            run.model, data.task, data.rows, data.schema, index, plan.precision,
            left_out=data.left_out.get(name, {}), seen=seen(name, data), parts=within is None,
        )  # fmt: skip
    if judged is not None:
        run.assessments[FOLDS] = judged
    for name in run.assessments:
        tell(console, run.assessments[name], name, data.task)
    timing = slowest(seconds)
    if timing:
        console.say("", f"slowest part: {timing}")
    reached = {
        name: rungs(run.model, data.task, data.rows, found.index, plan.precision)
        if found is not judged
        else found.rungs
        for name, found in run.assessments.items()
        if within is None
    }
    for name, each in reached.items():
        if each:
            console.say("rungs", f"{name}: " + "   ".join(f"{rung} {number(s.value)}" for rung, s in each.items()))
    scores = {name: found.to_json() for name, found in run.assessments.items()}
    for name, each in reached.items():
        scores[name] |= {"rungs": {rung: s.to_json() for rung, s in each.items()}} if each else {}
    facts = {"stopped": history.stopped, "splits": scores, "cost": cost, "seconds": dict(seconds)}
    write_json(folder / "report.json", facts)
    ladder = getattr(run.model, "ladder", None)
    silent = run.model.silent or (ladder is not None and not ladder.heard)
    ran = Ran(
        data, made, plan, settings, history, run.assessments, cost, dict(seconds), machine(device), command(),
        reached, silent, of_targets(run.model),
    )  # fmt: skip
    run.report = partial(report, folder / "report.html", ran)
    if within is None:
        run.report()
    seal(folder)
    console.say("saved", f"{folder} (report.html)    next: plait {data.task.verb} {folder} ...")
    return run


def settle(job: TableJob) -> str:
    """What the task does with the trained model, seen on the validation rows; a sentence on it, or ""."""
    if beneath := job.watched_beneath():
        found = outputs(job.model, job.data.rows, job.watch, precision=job.precision, call=watched)
        return beneath.settle(found["outputs"])

    def asked(call: Callable | None) -> tuple[Answers, Answers]:
        return answered(job.task, job.model, job.data.rows, job.watch, precision=job.precision, call=call)

    return job.task.settle(job.model, job.data.schema, asked)


def calibrate(job: TableJob) -> list[str]:
    """What the task learns of the trained model's answers to the validation rows; sentences on it."""
    data, index = job.data, job.data.splits["val"]
    if not len(index):
        return []
    return job.task.calibrate(*answered(job.task, job.model, data.rows, index, precision=job.precision))


def config(source: Any, settings: Settings, data: Prepared, made: BoundRecipe, plan: Plan) -> dict:
    """What the run folder remembers: enough to build the model, and to start or resume the same run."""
    return {
        "format": FORMAT,
        "plait": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "source": told(source),
        "settings": settings.to_json(),
        "fingerprint": data.fingerprint,
        "table": data.prints,
        "recipe": asdict(made),
        "task": data.task.to_json(),
        "plan": asdict(plan),
        "splits": data.sizes(),
        "towers": data.towers.to_json(),
    }


def _resumed(before: dict, options: dict) -> Settings:
    absent = {name for name in TABLES if before["settings"].get(name) == IN_MEMORY}
    if lacking := sorted(absent - options.keys()):
        raise UsageError(f"this run's {lacking[0]} table was in memory: pass it again to resume, {lacking[0]}=...")
    fixed = sorted(options.keys() - {"workers", "device", "allow_outside", *absent, *CHANGEABLE})
    if fixed:
        raise UsageError(f"a resumed run keeps its settings: {', '.join(fixed)} cannot be given with --resume")
    return Settings.from_json(before["settings"] | options)


def _anew(options: dict, settings: Settings, data: Prepared | None) -> dict[str, Any]:
    """What of its plan a resumed run has anew; its minutes may be for several fits of `data`."""
    found = {k: v for k, v in options.items() if k in CHANGEABLE}
    if "minutes" in found and data is not None:
        found["minutes"] = minutes_each(settings, bool(data.towers), bool(data.folds))
    return found


def command() -> str:
    """The command line that started this, for the report."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else ["python"])
