"""The task `act`: what it makes of trajectories, and what it is told where there are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import plait
from plait.data.worlds import WORLDS, World
from plait.errors import DataError, UsageError
from plait.runs.assemble import recipe
from plait.runs.console import Console
from plait.runs.prepare import prepare
from plait.runs.settings import Settings
from plait.tasks.acting import WINDOW

QUIET = Console(quiet=True)


def walks(count: int = 12, steps: int = 45) -> dict[str, list]:
    rng = np.random.default_rng(0)
    lengths = [steps - i for i in range(count)]
    return {
        "rewards": [rng.normal(size=n).tolist() for n in lengths],
        "states": [rng.normal(2, 3, (n, 3)).tolist() for n in lengths],
        "actions": [(5 * rng.uniform(-1, 1, (n, 2))).tolist() for n in lengths],
        "note": [f"walk {i}" for i in range(count)],
    }


@pytest.fixture
def acting():
    """The rows, and a model of them with its toy policy."""
    settings = Settings(task="act", system="decision_transformer_toy")
    data = prepare(pa.table(walks()), settings, QUIET)
    made = recipe(data.info, data.schema, type(data.task))
    model = data.task.model(made.bind(made.build())).eval()
    model.before_training(data.rows, np.arange(12), 0)
    return data, model


def test_returns_are_what_is_still_to_come_in_the_tables_own_units(acting):
    data, model = acting
    x, keep = model.trajectories(data.rows.batch(np.array([3])))
    rewards = np.asarray(walks()["rewards"][3])
    assert keep["states"].sum() == len(rewards)
    np.testing.assert_allclose(x["returns"][0, : len(rewards), 0], rewards[::-1].cumsum()[::-1], atol=1e-4)
    np.testing.assert_allclose(x["actions"][0, : len(rewards)], walks()["actions"][3], atol=1e-5)
    every = np.concatenate(walks()["actions"])
    np.testing.assert_allclose(model.span, np.abs(every).max(0), rtol=1e-5)
    assert float(model.levels[-1]) > float(model.usual) > float(model.levels[0])


@pytest.mark.parametrize("offset", [0, 3])
def test_windows_hold_every_step_once_at_its_place(acting, offset):
    data, model = acting
    x, keep = model.trajectories(data.rows.batch(np.arange(2)))
    wx, wk, steps = model.windows(x, keep, offset)
    assert steps.shape[1] == WINDOW and len(steps) % 2 == 0
    for row, pieces in enumerate(torch.arange(len(steps)).view(2, -1)):
        real = wk["states"][pieces]
        assert torch.equal(steps[pieces][real], torch.arange(45 - row))
        assert torch.equal(wx["states"][pieces][real], x["states"][row, : 45 - row])


@torch.inference_mode()
def test_the_next_action_is_that_of_the_last_steps_and_of_what_is_asked(acting):
    data, model = acting
    batch = data.rows.batch(np.arange(3))
    x, keep = model.trajectories(batch)
    so_far = x["returns"][:, :1, 0] - x["returns"][..., 0]
    asked = torch.tensor([1.0, 5.0, 9.0])
    found = model.next(x["states"], x["actions"], so_far, keep, asked)
    for row in range(3):
        end = 45 - row
        last = slice(end - WINDOW, end)
        part = {"states": x["states"][row, last][None], "actions": x["actions"][row, last][None]}
        part["returns"] = (asked[row] - so_far[row, last])[None, :, None]
        there = {name: torch.ones(1, WINDOW, dtype=torch.bool) for name in part}
        made, _ = model.policy(part, there, torch.arange(end - WINDOW, end)[None])
        torch.testing.assert_close(found[row], made[0, -1] * model.span)
    assert not torch.allclose(found, model.next(x["states"], x["actions"], so_far, keep, asked + 50))
    torch.testing.assert_close(
        model.answer(batch)["next"],
        model.next(x["states"], x["actions"], so_far, keep, model.levels[-1:].expand(3)),
    )


@pytest.fixture(scope="module")
def chained():
    """Rows that are tries at three things, and a model of them that reads chains."""
    table = walks(12, 16) | {"tries": ["a", "b", "c"] * 4}
    data = prepare(pa.table(table), Settings(task="act", system="agentic_transformer_toy"), QUIET)
    made = recipe(data.info, data.schema, type(data.task))
    model = data.task.model(made.bind(made.build())).eval()
    model.before_training(data.rows, np.arange(1, 12), 0)  # the first row is not for training
    return data, model


def test_a_chain_is_of_tries_at_one_thing_the_best_of_them_last(chained):
    model, rows = chained[1], torch.arange(1, 12).repeat(20)
    found, there = model.chains(rows, torch.Generator().manual_seed(0))
    assert found.shape == there.shape == (220, 3) and {1, 2, 3} == set(there.sum(1).tolist())
    assert not (there[:, :-1] & ~there[:, 1:]).any()  # those that lack come first
    earned = torch.tensor([sum(cell) for cell in walks(12, 16)["rewards"]])
    for row, tries, real in zip(rows.tolist(), (found + 1).tolist(), there):
        tries = [i for i, there in zip(tries, real) if there]
        assert row in tries and len(set(tries)) == len(tries) and {i % 3 for i in tries} == {row % 3}
        assert torch.equal(earned[tries], earned[tries].sort().values)


@torch.no_grad()
def test_a_chain_is_told_to_have_been_asked_for_what_its_best_earned(chained):
    model, g = chained[1], torch.Generator().manual_seed(0)
    x = {"states": torch.randn(2, 6, 3, generator=g), "actions": torch.randn(2, 6, 2, generator=g)}
    x["rewards"] = torch.tensor([[1.0, 2, 3, 0, 0, 0], [1, 1, 1, 1, 1, 0]])[..., None]
    keep = torch.arange(6) < torch.tensor([3, 5])[:, None]
    ready, real = model.told(x, keep, torch.tensor([6.0, 6.0]))
    asked = ready["returns"][..., 0] * model.scale
    torch.testing.assert_close(asked[0, :3], torch.tensor([6.0, 5, 3]))
    torch.testing.assert_close(asked[1, :5], torch.tensor([6.0, 5, 4, 3, 2]))
    assert ready["done"][0, :, 0].tolist() == [0, 0, 1, 0, 0, 0] and not ready["done"][1].any()
    assert all(torch.equal(k, keep) for k in real.values())
    _, going = model.told(x, keep, torch.tensor([6.0, 6.0]), over=False)
    assert going["rewards"].sum(1).tolist() == going["actions"].sum(1).tolist() == [2, 4]
    assert torch.equal(going["states"], keep)


def test_only_the_actions_of_the_best_try_are_learnt(chained, monkeypatch):
    data, model = chained
    found, there = torch.tensor([[4, 1, 7]]), torch.tensor([[False, True, True]])
    monkeypatch.setattr(model, "chains", lambda rows, generator: (found, there))
    seen, act = [], model.bound.system.act
    monkeypatch.setattr(model.bound.system, "act", lambda batch: seen.append(batch) or act(batch))
    loss = model.forward(data.rows.batch(np.array([2])), torch.Generator())["loss"]
    (batch,) = seen
    steps = model.there[found].sum(2)[0]
    assert batch["keep"]["states"].unflatten(1, (3, -1)).sum(2).tolist() == [[0, steps[1], steps[2]]]
    made = act(batch)["actions"].unflatten(1, (3, -1))[0, -1, : steps[2]]
    want = (made - model.past["actions"][7, : steps[2]] / model.span).square().mean()
    torch.testing.assert_close(loss, want)


class Walk(World):
    """Goes nowhere, for 25 steps, and is paid for it."""

    name, length, states, actions = "walk", 25, 3, 2

    def __init__(self):
        self.told = []

    def start(self, n, rng):
        return rng.normal(size=(n, 3))

    def step(self, states, actions):
        self.told.append((states, actions))
        return states + actions.sum(1, keepdims=True), np.full(len(states), 0.5), np.zeros(len(states), bool)


@torch.inference_mode()
def test_in_a_world_it_is_asked_as_in_a_table(acting, monkeypatch):
    model, world = acting[1], Walk()
    monkeypatch.setitem(WORLDS, "walk", world)
    assert np.allclose(model.earned("walk", np.array([3.0, 8.0])), 12.5) and len(world.told) == 25
    states, actions = (torch.from_numpy(np.stack(v, 1)) for v in zip(*world.told))
    for count in (1, 8, 25):
        keep = {n: torch.ones(2, count, dtype=torch.bool) for n in ("states", "actions", "returns")}
        keep["actions"][:, -1] = False
        earned = 0.5 * torch.arange(count).expand(2, -1)
        past = model.states(states[:, :count]), actions[:, :count].float()
        made = model.next(*past, earned, keep, torch.tensor([3.0, 8.0]))
        torch.testing.assert_close(made, actions[:, count - 1].float(), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_it_tries_again_with_its_own_tries_before_it(chained, monkeypatch):
    model, world = chained[1], Walk()
    monkeypatch.setitem(WORLDS, "walk", world)
    monkeypatch.setattr(Walk, "length", 5)
    seen, act = [], model.bound.system.act
    monkeypatch.setattr(model.bound.system, "act", lambda batch: seen.append(batch) or act(batch))
    assert np.allclose(model.tried("walk", np.array([3.0, 2.5])), 2.5) and len(world.told) == len(seen) == 15
    last = seen[-1]
    assert [batch["states"].shape[1] for batch in seen] == list(range(1, 16))
    states, actions = (torch.from_numpy(np.stack(v, 1)) for v in zip(*world.told))
    torch.testing.assert_close(last["states"], model.states(states))
    torch.testing.assert_close(last["actions"][:, :14] * model.span, actions[:, :14].float(), rtol=1e-4, atol=1e-5)
    assert last["steps"][0].tolist() == [0, 1, 2, 3, 4] * 3
    wanted = torch.tensor([3.0, 2.5])[:, None] - 0.5 * last["steps"]
    torch.testing.assert_close(last["returns"][..., 0] * model.scale, wanted)
    assert last["done"][..., 0].nonzero().tolist() == [[1, 4], [1, 9]]  # what the second row is asked for it gets
    assert last["keep"]["rewards"].sum(1).tolist() == [14, 14] and last["keep"]["states"].all()


def test_a_run_says_the_next_action_and_keeps_its_world(tmp_path):
    table = walks() | {"world": ["treasures"] * 12}
    options = dict(task="act", system="decision_transformer_toy", epochs=1, precision="fp32")
    with pytest.raises(DataError, match="treasures"):  # whose states are two numbers, not three
        plait.fit(pa.table(table), out=tmp_path / "wrong", console=QUIET, **options)
    run = plait.fit(pa.table(walks()), out=tmp_path / "run", console=QUIET, **options)
    assert run.assessments["test"].scores[0].name == "action error"
    begun = {name: [cell[:7] for cell in walks()[name]] for name in ("states", "actions", "rewards")}
    begun["actions"] = [cell[:6] for cell in begun["actions"]]
    found = plait.load(tmp_path / "run").predict(pa.table(begun))["action"].to_pylist()
    assert np.shape(found) == (12, 2) and np.isfinite(found).all() and np.abs(found).max() <= 5


@pytest.mark.parametrize(
    "changes, settings, error, match",
    [
        ({"rewards": None}, {}, UsageError, "no rewards, rename"),
        ({}, {"target": "note"}, UsageError, "takes no target"),
        ({"rewards": [[[1.0, 2.0]] * 4] * 12}, {}, DataError, "got 2 numbers a step"),
        (
            {},
            {"system": "vit"},
            UsageError,
            "vit_nano does not fit: it cannot act. These would: .*decision_transformer",
        ),
    ],
)
def test_what_cannot_be_acted_on_is_said(changes, settings, error, match):
    columns = {name: cells for name, cells in (walks() | changes).items() if cells is not None}
    with pytest.raises(error, match=match):
        prepare(pa.table(columns), Settings(task="act", **{"system": "decision_transformer_toy"} | settings), QUIET)


def test_trajectories_longer_than_an_episode_are_refused():
    data = prepare(pa.table(walks(steps=90)), Settings(task="act", system="decision_transformer_toy"), QUIET)
    made = recipe(data.info, data.schema, type(data.task))
    with pytest.raises(DataError, match="at most 64"):
        data.task.model(made.bind(made.build()))
