"""The linear layers beneath a head are solved: they equal scikit-learn's, and are chosen by cross-validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

import plait
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.tasks.bind import bind
from plait.tasks.linear import PENALTIES, WIDE, _minimise, _times, solve_straight
from plait.tasks.registry import TASKS

N = 160


def made(target: list, choice: str, noise: int = 2) -> tuple:
    """A table of numbers, a category and noise; its rows and the task's model on a toy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 2 + noise))
    cells = {f"x{i}": x[:, i].tolist() for i in range(2 + noise)} | {"c": ["u", "v"] * (N // 2), "y": target}
    table = read_table(cells)
    schema = Schema.guess(table, target="y")
    kind = TASKS[choice].variant(schema, table)
    schema.fit(table, np.arange(N))
    slots = {
        "number": {"kind": "number", "features": 2 + noise},
        "category": {"kind": "category", "sizes": (3,)},
    }
    system = plait.create_model("auto_toy", slots=slots)
    return Rows(table, schema, asked=True), kind.learn(schema).model(bind(system, "fuser", slots)), x


def raw(model, rows: Rows, index: np.ndarray) -> np.ndarray:
    ready = model.bound.prepared(rows.batch(index))
    return torch.cat([model.bound.raw(ready)[slot] for slot in model.head.linear], 1).numpy()


def test_numbers_equal_ridge_regression() -> None:
    rng = np.random.default_rng(1)
    x = np.random.default_rng(0).normal(size=(N, 4))
    rows, model, _ = made((3 * x[:, 0] - x[:, 1] + rng.normal(0, 0.5, N)).tolist(), "regress")
    index = np.arange(120)
    penalty = solve_straight(model, rows, index, seed=0)
    assert penalty in PENALTIES
    z, y = raw(model, rows, index), rows.target(index)["y"].numpy()
    ridge = Ridge(alpha=penalty / 2).fit(z, y)  # of squared errors, and half the penalty of the squared weights
    answer = model.straight(rows.batch(np.arange(N)))["outputs"][:, 0].numpy()
    np.testing.assert_allclose(answer, ridge.predict(raw(model, rows, np.arange(N))), atol=2e-3)


def test_classes_equal_logistic_regression() -> None:
    x = np.random.default_rng(0).normal(size=(N, 4))
    kinds = np.where(x[:, 0] + 0.5 * np.random.default_rng(2).normal(size=N) > 0, "b", np.where(x[:, 1] > 0, "a", "c"))
    rows, model, _ = made(kinds.tolist(), "classify")
    penalty = solve_straight(model, rows, np.arange(N), seed=0)
    z, y = raw(model, rows, np.arange(N)), rows.target(np.arange(N))["y"].numpy()
    theirs = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-8).fit(z, y)
    ours = model.straight(rows.batch(np.arange(N)))["outputs"].softmax(1).detach().numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(z), atol=5e-3)


def test_noise_is_penalised_more_than_what_counts() -> None:
    rng = np.random.default_rng(3)
    x = np.random.default_rng(0).normal(size=(N, 4))
    clear, model, _ = made((x[:, 0] * 5).tolist(), "regress")
    assert solve_straight(model, clear, np.arange(N), seed=0) == min(PENALTIES)
    noise, model, _ = made(rng.normal(size=N).tolist(), "regress")
    assert solve_straight(model, noise, np.arange(N), seed=0) >= 100


def test_rows_without_a_target_teach_nothing_and_few_rows_leave_the_layers_alone() -> None:
    x = np.random.default_rng(0).normal(size=(N, 4))
    y = (2 * x[:, 0]).tolist()
    rows, model, _ = made([None if i >= 80 else v for i, v in enumerate(y)], "regress")
    assert rows.known().sum() == 80
    solve_straight(model, rows, np.arange(N), seed=0)
    answer = model.straight(rows.batch(np.arange(80)))["outputs"][:, 0].numpy()
    np.testing.assert_allclose(answer, rows.target(np.arange(80))["y"].numpy(), atol=0.05)
    rows, model, _ = made(y, "regress")
    assert solve_straight(model, rows, np.arange(7), seed=0) is None
    assert not any(layer.weight.any() for layer in model.head.linear.values())


def test_the_solver_finds_where_the_gradient_vanishes() -> None:
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    prior = torch.tensor([4.0], dtype=torch.float64)
    weight, bias = _minimise(x, lambda out: (out[:, 0] - y).square().sum(), prior, 2.0)
    left = torch.cat([x.T @ x + torch.eye(3), x.sum(0)[:, None]], 1)
    last = torch.cat([x.sum(0), x.new_tensor([50.0])])[None]
    exact = torch.linalg.solve(torch.cat([left, last]), torch.cat([x.T @ (y - 4), (y - 4).sum()[None]]))
    assert torch.cat([weight[0], bias]).tolist() == pytest.approx(exact.tolist(), abs=1e-3)


def test_zeros_are_left_out_of_wide_tables() -> None:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 200, (90, 2), generator=draw)
    hot = torch.nn.functional.one_hot(ids, 200).flatten(1).double()
    x = torch.cat([torch.randn(90, 3, generator=draw).double(), hot, torch.zeros(90, 1).double()], 1)
    x[4, 7] = -2.5
    weight, to = torch.randn(2, x.shape[1], generator=draw).double(), torch.randn(90, 2, generator=draw).double()
    found = []
    for times in (_times(x), lambda weight: x @ weight.T):
        leaf = weight.clone().requires_grad_()
        out = times(leaf)
        (out * to).sum().backward()
        found.append((out.detach(), leaf.grad))
    assert x.shape[1] >= WIDE
    for ours, plain in zip(*found):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
