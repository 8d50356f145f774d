"""What a run says of itself: the page that `fit` and `evaluate` print."""

from __future__ import annotations

from plait.data.kinds import KINDS
from plait.evaluate.intervals import number
from plait.runs.assemble import BoundRecipe
from plait.runs.assess import Assessment
from plait.runs.console import Console, clock
from plait.runs.naming import names_classes
from plait.runs.prepare import Prepared
from plait.runs.run import Run
from plait.tasks.base import Task
from plait.train.loop import Plan


def announce(console: Console, data: Prepared, made: BoundRecipe, plan: Plan, cost: dict) -> None:
    """What will be done, before it is done."""
    console.say("columns", " | ".join(column_lines(data)))
    left: dict[str, list[str]] = {}
    for c in data.schema.used("ignored"):
        left.setdefault(c.why, []).append(c.name)
    for why, names in left.items():
        console.say("left out", f"{', '.join(names)}: {why}")
    for remark in data.remarks():
        console.say("careful", remark)
    console.say(
        "target",
        f"{data.task.title()}     split {' / '.join(f'{k} {v:,}' for k, v in data.sizes().items())}, "
        f"{data.parted or f'seed {plan.seed}'}",
    )
    if data.towers:
        console.say("towers", data.towers.title(data.schema))
    for kind, name in data.offered.items():
        columns = ", ".join(c.name for c in data.schema.used("input") if c.kind == kind)
        console.say("towers", f"--pretrained would let {name} read {columns}: published weights, fetched once")
    width = "bfloat16" if plan.precision == "bf16" else "float32"
    waits = few = ""  # where training may end early: the least time, and epochs
    if plan.patience and plan.patience + 1 < plan.epochs and not cost["folds_seconds"]:
        waits = f"{clock(cost['seconds'] * (plan.patience + 1) / plan.epochs)} to "
        few = f"{plan.patience + 1} to "
    console.say(
        "model",
        f"{made.title}: {cost['parameters'] / 1e6:.1f} M parameters, about {cost['memory_gb']:.1f} GB, about "
        f"{waits}{clock(cost['seconds'])} for "
        f"{few}{plan.epochs} epoch{'s' * (plan.epochs > 1)} of {len(data.splits['train']):,} rows in {width}",
    )
    if cost["folds_seconds"]:
        console.say(
            "folds",
            f"{data.folds.title()}: as many trainings, about {clock(cost['folds_seconds'])} of that, judge all rows; "
            "the last one, of all rows, is kept. --folds 1 judges by a tenth",
        )


def tell_shortened(console: Console, plan: Plan, cost: dict) -> None:
    """That simple models leave the network next to nothing."""
    epochs = f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}"
    console.say(
        "model",
        f"simple models leave next to nothing to learn: the network has {epochs} to show that it adds something, about "
        f"{clock(cost['seconds'])}; --epochs N gives it more",
    )


def column_lines(data: Prepared) -> list[str]:
    """What each input column holds; more than six plain ones without a fault share a line."""
    there = data.rows.presence()
    slot_of = {c: s.name for s in data.schema.slots for c in s.columns}
    lines: list[str] = []
    whole: dict[str, list[str]] = {}
    for c in data.schema.used("input"):
        bad = sum(data.rows.bad.by_reason(c.name).values())
        nulls = data.table.column(c.name).null_count
        own = KINDS[c.kind].own_slot
        if not nulls and not bad and not own:
            whole.setdefault(c.kind, []).append(c.name)
            continue
        fine = int(there[slot_of[c.name]].sum()) if own else len(data.table) - nulls - bad
        more = [f"{nulls:,} missing"] * (nulls > 0) + [f"{bad:,} bad (bad_rows.parquet)"] * (bad > 0)
        more += [f"{n:,} {remark}" for remark, n in data.rows.notes.get(c.name, {}).items()]
        lines.append(", ".join([f"{c.name} {c.kind} {fine:,} ok", *more]))
    for kind, names in whole.items():
        shown = ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:3])} and {len(names) - 3} more"
        lines.append(f"{shown} {kind}")
    return lines


def tell(console: Console, found: Assessment, name: str, task: Task) -> None:
    """The score, and what it is worth."""
    floor = {s.name: f"   {task.floor} {number(s.value)}" for s in found.baseline}
    alone = "".join(f"   {k} only {number(s.value)}" for k, s in found.alone.items())
    gain = (
        f"   gain of fusion {found.gain.value:+.3f} [{found.gain.low:+.3f}, {found.gain.high:+.3f}]"
        if found.gain
        else ""
    )
    if found.how:
        console.say(name, found.how)
    for score in task.headline(found.scores):
        beside = f"   {score.n:,} rows; {found.beside}" if found.beside else ""
        console.say(name, f"{score}{floor.get(score.name, '')}{alone}{gain}{beside}")
    if found.absent:
        console.say("absent", "   ".join(f"no {k} {number(s.value)}" for k, s in found.absent.items()))


def slowest(seconds: dict) -> str:
    """The largest of the measured parts, beside the model's own share."""
    total = seconds.get("training in all", 0.0)
    parts = {k: v for k, v in seconds.items() if k != "training in all"}
    parts["the model"] = max(0.0, total - sum(parts.values()))
    name = max(parts, key=lambda part: parts[part])
    return f"{name} {parts[name] / total:.0%}" if total > 1 else ""


def usable(run: Run) -> list[str]:
    """The commands that a run is for."""
    kinds = [slot.kind for slot in run.schema.slots]
    sides = [slot.kind for slot in run.schema.slots if slot.name in run.task.sides]
    where = f"{run.folder} {'photos/' if 'image' in kinds else 'sounds/' if 'audio' in kinds else 'table.csv'}"
    told = []
    if not run.task.mute and run.task.verb == "predict":
        told.append(f"plait predict {where} -o answers.csv")
    if run.model.bound.width:
        told.append(f"plait embed {where} -o vectors.parquet")
    if sides:
        told.append(f"plait search {where} {'--text TEXT' if 'text' in sides else f'--{sides[0]} FILE'}")
    if names_classes(run):
        told.append(f"plait predict {where} --classes NAME,NAME -o answers.csv")
    return told
