"""Runs written into their folders and read again. Nothing in a folder is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file

from plait.core.catalog import model_info
from plait.core.files import write_whole
from plait.core.init import initialise_rest
from plait.core.weight_files import read_weights
from plait.core.weights import assign
from plait.data.schema import Schema
from plait.errors import DataError, UsageError
from plait.runs.assemble import BoundRecipe, objective
from plait.runs.declared import no_more_modules, of_file, read_config, read_schema
from plait.runs.folder import CONFIG, LADDER, MISSES, MODEL, SCHEMA, read_json, write_json
from plait.runs.manifest import checking, rewriting, seal
from plait.runs.run import Run
from plait.runs.towers import Towers, load_towers
from plait.tasks.base import Task, TaskModel
from plait.tasks.beneath import several
from plait.tasks.conformal import Misses
from plait.tasks.published import USED
from plait.tasks.registry import TASKS
from plait.tasks.rowwise import Answer, AnswerTask


def save_run(
    folder: Path, schema: Schema, task: Task, model: TaskModel, precision: str, towers: Towers | None = None
) -> Run:
    """Write the model's weights (and its schema) into `folder`; the rest is there already."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with rewriting(folder / MODEL):
        write_whole(folder / MODEL, lambda path: save_file(state, path))
    write_json(folder / SCHEMA, schema.to_json())
    if task.misses is not None:
        write_json(folder / MISSES, task.misses._asdict())
    if (folder / CONFIG).exists():  # what the task learnt of the trained model
        write_json(folder / CONFIG, read_json(folder / CONFIG) | {"task": task.to_json()})
    seal(folder)
    return Run(folder, schema, task, model.eval(), precision, towers=towers)


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> Run:
    """The run in `folder`. Runs no code from it. Raises UsageError where there is none, DataError where a file is
    damaged."""
    folder = Path(folder)
    config = read_config(folder)
    if not (folder / MODEL).is_file():
        raise UsageError(f"{folder} holds no finished model; to go on with it: plait fit --resume {folder}")
    schema = read_schema(folder)
    with checking([folder / MODEL, folder / LADDER]):
        try:
            weights = read_weights(folder / MODEL)
        except ValueError as error:
            raise DataError(f"{folder / MODEL} is damaged: {error}") from error
        with of_file(folder / CONFIG, "task"):
            task = (TASKS | USED)[config["task"]["task"]].from_json(config["task"], schema)
        if (folder / MISSES).is_file():
            with of_file(folder / MISSES, "it"):
                task.misses = Misses(**read_json(folder / MISSES))
        with of_file(folder / CONFIG, "recipe"), no_more_modules(10_000 + 100 * len(weights)):
            made = BoundRecipe(**config["recipe"])
            system = made.build_on_meta()
            model = task.model(made.bind(system), objective(model_info(made.name)))
            systems = [system, *(made.build_on_meta() for _ in range(1, config["settings"].get("seeds", 1)))]
            if systems[1:]:
                assert isinstance(model, Answer) and isinstance(task, AnswerTask)
                own = [cast(Answer, task.model(made.bind(one))) for one in systems[1:]]
                model.join(own, task.pooled)
        with of_file(folder / MODEL, "recipe, as config.json has it, does not fit: it"):
            assign(model, (([t], {key: t}) for key, t in weights.items()), release=weights.release)
        with of_file(folder / CONFIG, "recipe"):
            for system in systems:
                initialise_rest(system)
        if (folder / LADDER).is_file():
            with of_file(folder / LADDER, "it"):
                model.ladder = several.read(folder / LADDER, schema)
        used, towers = config.get("used"), load_towers(folder, config).on(device)
    return Run(folder, schema, task, model.to(device).eval(), config["plan"]["precision"], used=used, towers=towers)
