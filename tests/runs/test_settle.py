"""What was trained beside the linear layers stays only where it is better by two standard errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plait.runs.assemble import objective, recipe
from plait.runs.console import Console
from plait.runs.fit import settle
from plait.runs.job import TableJob
from plait.runs.predict import answered
from plait.runs.prepare import prepare
from plait.runs.settings import Settings
from tests.runs.tables import COLUMNS, table


def job(kinds=("number", "category"), target: str = "label", rows: int = 200) -> TableJob:
    """A run whose head was given random weights, as if it had been trained badly."""
    settings = Settings(system="auto_toy", target=target, image_size=32, inputs=None, folds=1)
    source = table(kinds, rows).select([*(COLUMNS[kind] for kind in kinds), target])
    data = prepare(source, settings, Console(quiet=True))
    made = recipe(data.info, data.schema, type(data.task), **data.task.needs)
    model = data.task.model(made.bind(made.build()), objective(data.info))
    model.before_training(data.rows, data.splits["train"], 0)
    g = torch.Generator().manual_seed(0)
    for layer in [model.head.fused, *model.head.parts.values()]:
        torch.nn.init.normal_(layer.weight, generator=g)
    return TableJob(model, data, batch_size=32, seed=0, strength=0.0)


def trained(head) -> list[torch.Tensor]:
    return [layer.weight for layer in [head.fused, *head.parts.values()]]


@pytest.mark.parametrize("target", ["label", "amount", "true"])
def test_what_is_no_better_is_silenced(target):
    run = job(target=target)
    linear = [layer.weight.clone() for layer in run.model.head.linear.values()]
    assert any(w.abs().sum() > 0 for w in linear)
    assert settle(run) == "the linear part alone is as good on the validation rows: it answers"
    assert all(not w.any() for w in trained(run.model.head))
    assert all(torch.equal(a, b.weight) for a, b in zip(linear, run.model.head.linear.values()))
    batch = run.batch(run.watch)
    with torch.inference_mode():
        torch.testing.assert_close(run.model.eval().answer(batch), run.model.straight(batch))


def told(run: TableJob, whole: np.ndarray, straight: np.ndarray):
    """What `settle` asks: truth and answers, here from given logits (n, 3)."""
    truth, _ = answered(run.task, run.model, run.data.rows, run.watch)
    return lambda call: (truth, run.task.finish({"outputs": straight if call else whole}))


def test_what_is_better_stays():
    run = job()
    right = 9 * np.eye(3, dtype=np.float32)[run.batch(run.watch)["target"]["label"]]
    assert run.task.settle(run.model, run.data.schema, told(run, right, np.zeros_like(right))) == ""
    assert all(w.any() for w in trained(run.model.head))


def test_a_gain_within_two_standard_errors_is_none():
    run = job()
    lucky = np.zeros((len(run.watch), 3), np.float32)
    lucky[0, run.batch(run.watch)["target"]["label"][0]] = 1.0  # better in a single row: its mean is one standard error
    assert run.task.settle(run.model, run.data.schema, told(run, lucky, np.zeros_like(lucky)))
    assert not any(w.any() for w in trained(run.model.head))


def test_a_table_with_pictures_is_left_alone():
    run = job(kinds=("image", "number"))
    assert settle(run) == "" and all(w.any() for w in trained(run.model.head))


def test_a_task_without_a_linear_part_has_nothing_to_settle():
    settings = Settings(system="clip_toy", task="retrieve", inputs=["photo", "note"], image_size=32, max_tokens=16)
    data = prepare(table(("image", "text")), settings, Console(quiet=True))
    made = recipe(data.info, data.schema, type(data.task))
    model = data.task.model(made.bind(made.build()), None)
    before = [p.clone() for p in model.parameters()]
    assert settle(TableJob(model, data, batch_size=32, seed=0, strength=0.0)) == ""
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
