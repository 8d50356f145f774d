"""From columns to a model: whatever `plait models` lists can be built for its tasks, and takes a step."""

from __future__ import annotations

import inspect
import itertools
from functools import cache

import numpy as np
import pytest
import torch

from plait.core.catalog import build, model_info, systems
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import UsageError
from plait.runs.assemble import FITTED, choose, model_class, objective, reads, recipe, role_for
from plait.runs.console import Console
from plait.runs.prepare import prepare
from plait.runs.settings import Settings
from plait.tasks import tasks_of
from plait.tasks.registry import TASKS
from tests.runs.tables import COLUMNS, TARGETS, WORDS, named, table

SAID = ("points",)  # kinds that are never guessed from lists
PAINTERS = ("masked", "generator", "transcriber", "codec", "diffuser", "policy", "detector")
SYSTEMS = [pytest.param(s, id=s.name) for s in systems().values()]
PAIRS = [(f"{s.name}_toy", task) for s in systems().values() for task in tasks_of(model_info(f"{s.name}_toy"))]


def inputs(takes: tuple[str, ...], task: str) -> list[str]:
    """Columns that the system reads, as many as the task can use."""
    if task == "caption":
        return [COLUMNS["image" if "image" in takes else "audio"]]
    if task == "transcribe":
        return [COLUMNS["audio"]]
    if task == "act":
        return ["states", "actions", "rewards"]
    if task in ("retrieve", "match") and "image" not in takes:
        return [COLUMNS["text"], "said"]
    if task == "restore":
        takes = tuple(dict.fromkeys(takes))  # one column of pictures
    return list(named(("image", "text") if task in ("retrieve", "match") else takes))


@cache
def fitted(takes: tuple[str, ...], image, length: int, acts: bool = False, rate: int | None = None) -> str:
    """A schema of such columns, as JSON text would keep it apart from others."""
    data = read_table(table(takes, rows=12))
    names, told = inputs(takes, "act" if acts else ""), {COLUMNS[k]: k for k in takes if k in SAID}
    schema = Schema.guess(data, inputs=names, target=None if acts else "label", kinds=told)
    if acts:
        TASKS["act"].variant(schema, data)
    return schema.fit(data, np.arange(12), image_size=image, max_tokens=length, rate=rate).to_json()


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_size_is_assembled_for_every_task_that_it_is_listed_for(system):
    for size in system.sizes:
        info = model_info(f"{system.name}_{size}")
        fixed = reads(info)
        assert tasks_of(info) and fixed.keys() <= {"image", "length", "rate"}
        roles = set()
        for choice in tasks_of(info):
            task = TASKS[choice].by(role_for(TASKS[choice], info))
            schema = Schema.from_json(
                fitted(info.takes, fixed.get("image"), fixed.get("length") or 256, choice == "act", fixed.get("rate"))
            )
            assert choose(info.name, schema, task) == info
            role = role_for(task, info)
            words = {"vocab": 70, "begin": 1, "end": 2} if role == "generator" else None
            labels = 5 if role in ("transcriber", "detector") else None
            made = recipe(info, schema, task, labels=labels, words=words)
            assert made.role == role and role in info.roles and role in task.roles
            if made.role in roles:
                continue
            roles.add(made.role)
            model = build(info.name, **made.arguments)
            assert set(model.takes) == {s.name for s in schema.slots}
            if made.role == "backbone":  # the task brings a head of its own
                assert not [key for key, _ in model.named_parameters() if key.startswith(tuple(model.classifier))]
            assert (made.bind(model).width > 0) == (made.role not in PAINTERS)  # these only write, paint, act or find


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_class_says_which_of_its_arguments_are_fitted(system):
    model = model_class(model_info(system.name))
    known = {*inspect.signature(model).parameters, *itertools.chain(*system.parts.values())}
    assert set(model.fits) <= known and set(model.fits) <= {"slots", *FITTED}
    assert not (set(FITTED) | {"slots"}) & known - set(model.fits)


@pytest.mark.parametrize("name, choice", PAIRS, ids=[f"{n}-{t}" for n, t in PAIRS])
def test_a_step_is_taken_for_each_task(name, choice):
    takes = model_info(name).takes
    options = {"target": TARGETS.get(choice), "task": choice, "inputs": inputs(takes, choice)}
    length = 16 if "text" in takes else None
    options["kinds"] = {COLUMNS[kind]: kind for kind in takes if kind in SAID}
    options["kinds"] |= {"said": "text"} if "said" in options["inputs"] else {}
    options["kinds"] |= {"label": f"ordinal:{'<'.join(WORDS)}"} if choice == "ordinal" else {}
    settings = Settings(system=name, image_size=32, max_tokens=length, folds=1, **options)
    source = table((*dict.fromkeys(takes), "image") if choice == "generate" and "image" not in takes else takes)
    if choice == "restore":
        source = source.append_column("clear", [source[COLUMNS["image"]].to_pylist()[::-1]])
    data = prepare(source, settings, Console(quiet=True))
    made = recipe(data.info, data.schema, type(data.task), **data.task.needs)
    model = data.task.model(made.bind(made.build()), objective(data.info))
    model.before_training(data.rows, data.splits["train"], 0)
    batch = data.rows.batch(data.splits["train"][:8])
    losses = model.train()(batch, torch.Generator().manual_seed(0))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.after_step()
    with torch.inference_mode():
        outputs = {name: out.numpy() for name, out in model.eval().answer(batch).items()}
    answers = data.task.finish(outputs)
    assert all(len(values) == 8 for values in answers.values())
    assert data.task.scores(*data.task.record(batch, answers))
    assert all(len(column) == 8 for column in data.task.columns(answers).values())


def test_what_does_not_fit_is_refused_and_others_are_named():
    schema = Schema.from_json(fitted(("image", "text"), None, 16))
    with pytest.raises(UsageError, match="vit_nano does not fit: it reads image, each once, .*These would: .*vilt"):
        choose("vit", schema, TASKS["classify"])
    with pytest.raises(UsageError, match="vilt_nano does not fit: it cannot retrieve. These would: .*clip"):
        choose("vilt", schema, TASKS["retrieve"])
