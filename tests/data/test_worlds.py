"""Plait's own worlds: their rules, and that some who play there are better than others."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from plait.data.worlds import WORLDS, Buried, CartPole, Treasures, play, returns_of, trajectories
from plait.errors import UsageError


def test_a_pole_falls_the_way_it_leans_and_a_push_moves_the_cart():
    world = CartPole()
    states = np.array([[0, 0, 0.1, 0], [0, 0, -0.1, 0], [0, 0, 0.0, 0]])
    after, rewards, over = world.step(states, np.array([[0.0], [0.0], [1.0]]))
    assert after[0, 3] > 0 > after[1, 3] and np.allclose(after[0], -after[1])
    assert after[2, 1] > 0 > after[2, 3] and (rewards == 1).all() and not over.any()
    # at rest and upright: push / (cart + pole) by the equations of motion
    tilt = -(10 / 1.1) / (0.5 * (4 / 3 - 0.1 / 1.1))
    assert np.allclose(after[2, [1, 3]], [0.02 * (10 / 1.1 - 0.05 * tilt / 1.1), 0.02 * tilt])
    assert world.step(np.array([[0, 0, 0.2, 3.0]]), np.zeros((1, 1)))[2].all()


def test_moves_in_the_field_and_a_treasure_ends_it():
    world = Treasures()
    at = world._told(np.array([[6, 7], [0, 0], [7, 6]]))
    after, rewards, over = world.step(at, np.eye(4)[[1, 0, 3]])
    assert (world._place(after) == [[7, 7], [0, 0], [7, 7]]).all()
    assert np.allclose(rewards, [6.95, -0.05, 6.95]) and over.tolist() == [True, False, True]


def test_what_is_buried_is_told_to_nobody_and_stays_where_it_is():
    world, rng = Buried(), np.random.default_rng(0)
    start = world.start(400, rng)
    assert world.seen(start).shape == (400, 2) and not world.seen(start).any() and set(start[:, 2]) == {0, 1, 2, 3}
    assert (world.again(start + 0.0, rng) == start).all()
    at = np.array([[-0.5, 0, 0], [-0.5, 0, 3], [0, 0, 0], [0, 0.5, 3]])
    after, rewards, over = world.step(at, np.eye(4)[[0, 0, 2, 1]])
    assert np.allclose(rewards, [0.98, -0.02, -0.02, -0.02]) and over.tolist() == [True, True, False, False]
    assert (after == [[-1, 0, 0], [-1, 0, 3], [0, -0.5, 0], [0, 0.5, 3]]).all()


def test_players_try_several_times_at_one_thing(tmp_path):
    table = pq.read_table(trajectories(tmp_path, "buried", episodes=300)).to_pydict()
    assert table["tries"] == [i // Buried.tries for i in range(300)]
    where = [set() for _ in range(300 // Buried.tries + 1)]
    for thing, states, actions, rewards in zip(*(table[n] for n in ("tries", "states", "actions", "rewards"))):
        if max(rewards) > 0.5:
            where[thing].add(tuple(states[-1] + Buried.MOVES[np.argmax(actions[-1])]))
    found = [len(places) for places in where]
    assert max(found) == 1 and sum(found) > 25


@pytest.mark.parametrize("name", WORLDS)
def test_the_expert_earns_most_and_chance_least(name):
    world, rng = WORLDS[name], np.random.default_rng(0)
    best, chance = (returns_of(world, who, 200) for who in (world.expert, world.chance))
    found = play(world, 200, world.player(200, rng), rng)
    assert best.mean() > 1.5 * found["rewards"].sum(1).mean() > 2 * chance.mean()
    assert found["rewards"].sum(1).max() > 0.95 * best.mean()
    assert all((r[n:] == 0).all() for r, n in zip(found["rewards"], found["steps"]))


def test_trajectories_are_a_table_and_an_unknown_world_is_named(tmp_path):
    table = pq.read_table(trajectories(tmp_path, "treasures", episodes=5))
    assert table.column_names == ["states", "actions", "rewards", "world"] and len(table) == 5
    lengths = [{len(table[name][i]) for name in ("states", "actions", "rewards")} for i in range(5)]
    assert all(len(n) == 1 for n in lengths)
    again = pq.read_table(trajectories(tmp_path / "again", "treasures", episodes=5))
    assert table.equals(again)
    with pytest.raises(UsageError, match="treasures"):
        trajectories(tmp_path, "treasure")
