"""A trained run changed by methods: a run of its own, with the weights that were trained, that can be trained on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from plait.core.files import refuse_unwritable
from plait.core.methods import apply_methods, merge_changes, method_info, read_change, written
from plait.errors import DataError, UsageError
from plait.runs.assemble import BoundRecipe
from plait.runs.declared import read_config
from plait.runs.folder import CONFIG, LADDER, write_json
from plait.runs.lock import locked, still
from plait.runs.manifest import LOCK
from plait.runs.run import Run
from plait.runs.saved import load, save_run
from plait.runs.stored import SPLITS
from plait.train.parallel import to_device

BATCH = 64


def change(
    folder: str | Path,
    methods: Sequence[str | tuple[str, dict[str, Any]]] = (),
    *,
    out: str | Path,
    merge: bool = False,
    sample: Any = None,
    device: str | torch.device = "cpu",
) -> Run:
    """The run in `folder` with its model changed, as a new run in `out`. What was trained is kept.

    methods: to apply, in order, after those that the run was trained with: "int8" or "taylor_pruning:share=0.5".
    merge: what earlier methods put beside the weights becomes weights first, as of `lora`; these methods are then gone.
    sample: a table with the target, for methods that read gradients: those of the loss of all its rows are in the
        weights when the first method is applied.
    The new run goes on training with `fit(out=out, resume=True)`, from these weights and as the first was told to.
    Raises UsageError for a method that puts a model around the model, whose answers would have to be learnt anew.
    """
    wanted = [read_change(m) for m in methods]
    if not wanted and not merge:
        raise UsageError("nothing to change: give methods, or merge")
    if around := [written(c) for c in wanted if method_info(c[0]).wraps]:
        raise UsageError(f"{around[0]} reads other features than the run's answers were learnt from: fit with it anew")
    old, new = Path(folder), Path(out)
    if new.exists() and (not new.is_dir() or any(p.name != LOCK for p in new.iterdir())):
        raise UsageError(f"{new} already exists: give another out")
    refuse_unwritable(new)
    with still(old, "changed"):
        run, config = load(old, device=device), read_config(old)
    if getattr(run.model, "twins", None):
        raise UsageError(f"{old} answers by the mean of several seeds: change a run of one seed")
    made = BoundRecipe(**config["recipe"])
    system = run.model.bound.system
    assert isinstance(system, nn.Module)
    kept = merge_changes(system, made.changes) if merge else list(made.changes)
    if merge and len(kept) == len(made.changes):
        raise UsageError(f"{old} has nothing beside its weights to merge: its methods are {_told(made)}")
    if sample is not None:
        _read_gradients(run, sample)
    apply_methods(system, wanted)
    made = replace(made, changes=[*kept, *wanted])
    run.model.zero_grad(set_to_none=True)
    config["recipe"]["changes"] = [list(c) for c in made.changes]
    config["settings"]["methods"] = config["recipe"]["changes"]
    config["changed_from"] = str(old.resolve())
    config.pop("rung", None)  # what towers learnt is theirs from now on
    run.task.misses = None  # those of another model
    with locked(new):
        if any(p.name != LOCK for p in new.iterdir()):
            raise UsageError(f"{new} was written by another process in the meantime: give another out")
        write_json(new / CONFIG, config)
        for name in ("bad_rows.parquet", SPLITS, LADDER):
            if (old / name).exists():
                shutil.copy(old / name, new)
        if run.towers:
            run.towers.copy(new)
        return save_run(new, run.schema, run.task, run.model, run.precision, run.towers)


def _told(made: BoundRecipe) -> str:
    return ", ".join(map(written, made.changes)) or "none"


def _read_gradients(run: Run, sample: Any) -> None:
    """Leave in the weights the gradients of the summed losses of a table's rows."""
    rows = run.rows(sample, asked=True)
    run.task.derive(rows)
    index = np.flatnonzero(run.task.known(rows))
    if not len(index):
        raise DataError(f"{rows.table.source} has no row with a target: give a sample whose answers are known")
    device, generator = next(run.model.parameters()).device, torch.Generator()
    run.model.eval().requires_grad_(True)  # also of what was frozen to be trained
    for start in range(0, len(index), BATCH):
        losses = run.model(to_device(rows.batch(index[start : start + BATCH]), device), generator.manual_seed(start))
        sum(losses.values(), torch.zeros((), device=device)).backward()
