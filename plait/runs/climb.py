"""Towers that learn with the answer: by adapters in their last layers, then in all their weights."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from plait.core.files import sweep
from plait.core.methods import apply_method
from plait.core.weights import load_strict
from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import PlaitError, UsageError
from plait.methods.adaptation.lora import outermost
from plait.parts.adapters import write_adapter
from plait.runs.assemble import BoundRecipe
from plait.runs.console import Console, clock
from plait.runs.folder import CONFIG, MODEL, SCHEMA, read_json, write_json
from plait.runs.folds import Folds
from plait.runs.job import TableJob
from plait.runs.manifest import forget, seal
from plait.runs.planning import estimate, minutes_each, precision_for
from plait.runs.predict import answered
from plait.runs.prepare import Prepared
from plait.runs.run import Run
from plait.runs.saved import save_run
from plait.runs.settings import Settings
from plait.runs.stored import SPLITS
from plait.runs.towers import HOME, Tower, Towers, adapter_of, load_towers
from plait.tasks.base import TaskModel
from plait.tasks.bind import Bound, FuserBound
from plait.tasks.rowwise import Answer
from plait.train.loop import METRICS, Plan, train

ADAPTERS, ALL = "adapters", "all_weights"
CLIMBS = {ADAPTERS: "adapters in the last third of each tower", ALL: "all weights of each tower"}
RANK, LAST = 8, 1 / 3  # of the adapters, and the share of the layers that have some
# Of the steps that move all weights of a tower beside those of the head, and from each layer to the one beneath.
LOWER, DECAY = 0.05, 0.8
LR, BATCH, STEPS, FEWEST, MOST = 1e-3, 32, 300, 3, 30  # epochs for so many steps, and not fewer or more
LEAST_SECONDS, MOST_SECONDS = 120.0, 600.0  # of a rung where no budget is given

Finish = Callable[..., Run]  # a run, and what was measured of its training -> the same, assessed and reported


class Reading(FuserBound):
    """Plait's own system behind towers that are trained with it: its batches hold cells where it reads vectors.

    own: that system bound. towers: {kind: a tower}. kinds: {slot: its tower}. scales: {slot: how vectors are scaled}.
    """

    def __init__(self, own: FuserBound, towers: dict[str, Bound], kinds: dict[str, str], scales: dict[str, nn.Module]):
        nn.Module.__init__(self)
        self.system, self.takes, self.kinds, self.told = own.system, own.takes, own.kinds, own.told
        self.preprocess, self.by = own.preprocess, kinds
        self.towers, self.scales = nn.ModuleDict(towers), nn.ModuleDict(scales)

    def prepared(self, batch: dict) -> dict:
        ready: dict[str, Any] = {**batch, "keep": dict(batch["keep"])}
        for slot, kind in self.by.items():
            keep, there = ready["keep"].pop(slot, None), batch["present"][slot]
            cells = {kind: batch[slot], "keep": {} if keep is None else {kind: keep}, "present": {kind: there}}
            vectors: Tensor = cast(Bound, self.towers[kind]).features(cells).fused  # (B, F)
            ready[slot] = self.scales[slot](vectors.double()) * there[:, None]
        return super().prepared(ready)

    def train(self, mode: bool = True) -> Reading:
        """Batch norms of towers keep their statistics: batches are small, and what is frozen must not move."""
        super().train(mode)
        for m in self.towers.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()
        return self


def joined(model: TaskModel, towers: Towers, schema: Schema, rung: str) -> TaskModel:
    """A model that learns with its towers, from what both are. Raises PlaitError where towers have nothing that the
    rung would teach."""
    learning = {kind: copy.deepcopy(tower.bound).cpu() for kind, tower in towers.towers.items()}
    for tower in learning.values():
        system = cast(nn.Module, tower.system)
        if rung == ADAPTERS:
            apply_method(system, "lora", rank=RANK, alpha=2.0 * RANK, targets=("all",), last=LAST)
        else:
            tower.requires_grad_(True)
            tower.lr_factor = LOWER  # type: ignore[assignment]
            slower_below(system)
    found, read = unladdered(model), towers.of(schema)
    params = {slot: schema.column(schema.slot(slot).columns[0]).params for slot in read}
    scales = {slot: cast(nn.Module, KINDS["vector"].preprocess(told)) for slot, told in params.items()}
    assert isinstance(found.bound, FuserBound)
    found.bound = Reading(found.bound, learning, {slot: tower.kind for slot, tower in read.items()}, scales)
    return found


def unladdered(model: TaskModel) -> TaskModel:
    """A copy of a model, without the simple models beneath it, which have learnt from vectors of frozen towers."""
    ladder, model = getattr(model, "ladder", None), cast(Answer, model)
    try:
        model.ladder = None
        return copy.deepcopy(model)
    finally:
        model.ladder = ladder


def slower_below(system: nn.Module) -> None:
    """The deeper a layer lies, the smaller its steps; the least those of what stands before all layers."""
    depth = {id(layer): i for i, layer in enumerate(reversed(outermost(system)))}
    begun = False

    def visit(module: nn.Module) -> None:
        nonlocal begun
        for child in module.children():
            if id(child) in depth:
                begun, factor = True, DECAY ** depth[id(child)]
            elif any(id(m) in depth for m in child.modules()):
                visit(child)
                continue
            else:
                factor = 1.0 if begun or not depth else DECAY ** len(depth)
            child.lr_factor = factor  # type: ignore[assignment]

    visit(system)


def cells_of(data: Prepared) -> Prepared:
    """The same table, of which towers' slots hold cells."""
    schema = copy.deepcopy(data.schema)
    for name, tower in data.towers.of(data.schema).items():
        schema.slot(name).kind = tower.kind
    return replace(data, schema=schema, rows=_rows(data, schema), towers=Towers({}))


def _rows(data: Prepared, schema: Schema, towers: Towers | None = None) -> Rows:
    readers = towers.readers(schema, keep=True) if towers else {}
    how: dict[str, Any] = dict(allow_outside=data.rows.allow_outside, workers=data.rows.workers, towers=readers)
    rows = Rows(data.table, schema, asked=data.task.asks is not None, **how)
    data.task.derive(rows.scan())
    rows.weights = data.rows.weights
    return rows


@dataclass
class Climb:
    """One rung above a run on towers, in a folder of its own.

    own, towers: the model and the towers that it begins with. data: their table. finish: assesses and reports.
    """

    rung: str
    own: TaskModel
    towers: Towers
    data: Prepared
    settings: Settings
    folder: Path
    console: Console
    device: torch.device
    finish: Finish

    def begin(self, below: Path, spent: float, changed: dict[str, Any]) -> Run | str:
        """The run of this rung, which goes on if it was begun; or, in a sentence, why the rung is left out.

        below: the folder of the run that it begins with. spent: seconds that the rungs below took. changed: what of the
        plan a resumed run has anew.
        """
        begun = (self.folder / CONFIG).exists()
        try:
            model = joined(self.own, self.towers, self.data.schema, self.rung)
        except PlaitError as error:
            return str(error)
        cells = cells_of(self.data)
        old = Plan(**read_json(self.folder / CONFIG)["plan"] | changed) if begun else None
        plan = old or _plan(self.settings, cells, model, self.device)
        job = _job(model, cells, plan, self.settings)
        cost = estimate(job, plan, self.device, Folds())
        if not begun and not plan.minutes:
            least = cost["seconds"] / plan.epochs
            plan.epochs = min(plan.epochs, int(min(max(spent / 2, LEAST_SECONDS), MOST_SECONDS) / least))
            if not plan.epochs:
                return f"an epoch would take about {clock(least)}: more --minutes would try it"
            cost |= {"seconds": least * plan.epochs, "steps": plan.epochs * job.steps_per_epoch}
        if not begun:
            self.towers.copy(self.folder)
            shutil.copy(below / SPLITS, self.folder)
            write_json(self.folder / SCHEMA, self.data.schema.to_json())
            write_json(self.folder / CONFIG, read_json(below / CONFIG) | {"rung": self.rung, "plan": asdict(plan)})
            seal(self.folder)
        told = learns(model)
        self.console.say(
            "rungs",
            f"{CLIMBS[self.rung]}: {told['parameters']:,} parameters learn, {told['share']:.2%}; about "
            f"{clock(cost['seconds'])} for {plan.epochs} epoch{'s' * (plan.epochs > 1)}",
        )
        try:
            return self._trained(job, plan, cost)
        except UsageError as error:  # such as a loss that is not finite
            return str(error)

    def go_on(self, plan: Plan) -> Run:
        """A run of this rung that answers by itself, trained on from its own checkpoint."""
        model = joined(self.own, self.towers, self.data.schema, self.rung)
        job = _job(model, cells_of(self.data), plan, self.settings)
        return self._trained(job, plan, estimate(job, plan, self.device, Folds()))

    def _trained(self, job: TableJob, plan: Plan, cost: dict) -> Run:
        sweep(self.folder)
        forget(self.folder, METRICS, "bad_rows.parquet")
        self.console.start("training", plan.epochs * job.steps_per_epoch)
        begun = time.monotonic()
        try:
            history = train(job, plan, self.folder, resume=True, progress=self.console, device=str(self.device))
        finally:
            self.console.stop()
        job.seconds["training in all"] = time.monotonic() - begun
        data = replace(self.data, task=copy.deepcopy(self.data.task))  # which learns of these answers
        if history.stopped == "interrupted":
            seal(self.folder)
            return Run(self.folder, data.schema, data.task, self.own, plan.precision, stopped="interrupted")
        towers, told = self._keep(cast(Reading, job.model.bound), plan), learns(job.model)
        model = unladdered(self.own)
        load_strict(model, {k: t for k, t in job.model.state_dict().items() if not k.startswith("bound.towers.")})
        answering = replace(data, rows=_rows(data, data.schema, towers), towers=towers)
        model.to(self.device)
        val = data.splits["val"]
        for remark in data.task.calibrate(*answered(data.task, model, answering.rows, val, precision=plan.precision)):
            self.console.say("", remark)
        data.rows.bad.write(self.folder / "bad_rows.parquet")
        run = save_run(self.folder, data.schema, data.task, model, plan.precision, towers)
        run.learns, run.rows_read = told, answering.rows
        made = BoundRecipe(**read_json(self.folder / CONFIG)["recipe"])
        how = (history, job.seconds, answering, made, plan, self.settings, cost, self.device, self.console)
        return self.finish(run, *how)

    def _keep(self, learnt: Reading, plan: Plan) -> Towers:
        """Write the towers as they are now; they are frozen again. The run's model is written after them: without one
        it is not done."""
        config, home = read_json(self.folder / CONFIG), self.folder / HOME
        kept = [p.relative_to(self.folder).as_posix() for p in home.rglob("*")]
        forget(self.folder, MODEL, *kept)
        (self.folder / MODEL).unlink(missing_ok=True)
        for kind, tower in self.towers.towers.items():
            bound, adapter = cast(Bound, learnt.towers[kind]).cpu(), home / f"{kind}_adapter"
            if self.rung == ADAPTERS:
                write_adapter(cast(nn.Module, bound.system), adapter, base=tower.recipe.name)
                config["towers"][kind] = tower.to_json() | {"adapter": adapter_of(adapter)}
            else:
                whole = Tower(kind, tower.recipe, bound, tower.tokenizer)
                Towers({kind: whole}).save(self.folder)
                shutil.rmtree(adapter, ignore_errors=True)  # of the rung below
                config["towers"][kind] = whole.to_json()
        write_json(self.folder / CONFIG, config | {"plan": asdict(plan)})
        seal(self.folder)
        return load_towers(self.folder, config).on(self.device)


def learns(model: TaskModel) -> dict[str, Any]:
    """How many parameters of the towers take a gradient, and which share of those that were published."""
    found = cast(Reading, model.bound).towers
    count = sum(p.numel() for p in found.parameters() if p.requires_grad)
    every = sum(p.numel() for name, p in found.named_parameters() if ".lora_" not in name)
    return {"parameters": count, "share": count / every}


def _job(model: TaskModel, data: Prepared, plan: Plan, settings: Settings) -> TableJob:
    return TableJob(
        model,
        data,
        batch_size=plan.batch_size,
        seed=settings.seed,
        strength=settings.augment,
        precision=plan.precision,
        changes=settings.methods,
    )


def _plan(settings: Settings, data: Prepared, model: TaskModel, device: Any) -> Plan:
    n = len(data.splits["train"])
    batch = min(settings.batch_size or BATCH, n)
    epochs = settings.epochs or min(max(math.ceil(STEPS * batch / n), FEWEST), MOST)
    plan = Plan(
        epochs=epochs,
        batch_size=batch,
        lr=settings.lr or LR,
        weight_decay=settings.weight_decay,
        patience=settings.patience or max(3, epochs // 4),
        minutes=minutes_each(settings, towers=True, folds=False),
        seed=settings.seed,
        checkpoint_seconds=settings.checkpoint_seconds,
    )
    plan.precision = precision_for(settings, data, model, plan, device)
    return plan
