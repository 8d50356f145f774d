"""Small worlds to act in, many at once, and tables of what policies of mixed quality did in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from plait.core.files import write_whole
from plait.errors import UsageError, nearest

# states (n, S), and what each has earned so far (n,) -> actions (n, A)
Act = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


class World:
    """Episodes of at most `length` steps with states (n, S), actions (n, A) and rewards (n,). An episode goes on until
    its place is `over`. The world may know more of a state than it tells. tries: how often a table's players try at the
    same thing."""

    name: ClassVar[str]
    length: ClassVar[int]
    states: ClassVar[int]  # S
    actions: ClassVar[int]  # A
    tries: ClassVar[int] = 1

    def start(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """First states (n, S)."""
        raise NotImplementedError

    def again(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """First states of another try at what `states` were a try at."""
        return self.start(len(states), rng)

    def seen(self, states: np.ndarray) -> np.ndarray:
        """What a policy is told of states, (n, S)."""
        return states

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The next states (n, S), the rewards (n,), and which episodes are over (n,)."""
        raise NotImplementedError

    def chance(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions of one who does not look."""
        raise NotImplementedError

    def player(self, n: int, rng: np.random.Generator) -> Act:
        """A policy for n episodes, each with a skill of its own."""
        raise NotImplementedError

    def expert(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The actions of the best one known."""
        raise NotImplementedError


class CartPole(World):
    """A pole on a cart that is pushed, by at most ten newtons, to the left or the right (Barto, Sutton and Anderson
    1983), a fiftieth of a second a step. States are the cart's place and speed and the pole's angle and its speed. Each
    step earns 1, less what the cart is off its place; it ends where the pole leans by more than 12 degrees or the cart
    is 2.4 metres away."""

    name, length, states, actions = "cart_pole", 100, 4, 1
    GAIN = np.array([0.3, 0.5, 6.0, 1.2])  # of the expert's push, for each number of the state
    WIDE, LEAN = 2.4, np.deg2rad(12)

    def start(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-0.05, 0.05, (n, 4))

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place, speed, angle, turn = states.T
        push, cos, sin = 10 * np.clip(actions[:, 0], -1, 1), np.cos(angle), np.sin(angle)
        both = (push + 0.05 * turn**2 * sin) / 1.1
        tilt = (9.8 * sin - cos * both) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        drive = both - 0.05 * tilt * cos / 1.1
        after = states + 0.02 * np.stack([speed, drive, turn, tilt], 1)
        over = (np.abs(after[:, 0]) > self.WIDE) | (np.abs(after[:, 2]) > self.LEAN)
        return after, 1 - np.minimum(np.abs(place) / self.WIDE, 1), over

    def chance(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-1, 1, (len(states), 1))

    def expert(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.clip(states @ self.GAIN[:, None], -1, 1)

    def player(self, n: int, rng: np.random.Generator) -> Act:
        """Some of the expert's push, or of its contrary, and a hand that trembles."""
        skill = rng.uniform(-0.3, 0.3, (n, 1))

        def act(states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.clip(skill * self.expert(states, earned, rng) + 0.1 * rng.normal(size=(n, 1)), -1, 1)

        return act


class Treasures(World):
    """A field of nine by nine places with five treasures, of which the farther one is worth more; the first that is
    found ends the episode, and each step costs. States are the place, from -1 to 1; actions are four numbers, of which
    the greatest says where to go: left, right, down or up."""

    name, length, states, actions = "treasures", 40, 2, 4
    SIDE = 9
    PLACES = np.array([[3, 5], [6, 3], [1, 2], [7, 7], [0, 8]])
    VALUES = np.array([1.0, 3.0, 5.0, 7.0, 9.0])
    COST = 0.05
    MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])

    def start(self, n: int, rng: np.random.Generator) -> np.ndarray:
        return self._told(np.stack([rng.integers(3, 6, n), rng.integers(3, 5, n)], 1))

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        after = np.clip(self._place(states) + self.MOVES[actions.argmax(1)], 0, self.SIDE - 1)
        there = (after[:, None] == self.PLACES).all(2)  # (n, 5)
        return self._told(after), there @ self.VALUES - self.COST, there.any(1)

    def chance(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.eye(4)[rng.integers(0, 4, len(states))]

    def expert(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._towards(np.full(len(states), len(self.VALUES) - 1), states, rng)

    def player(self, n: int, rng: np.random.Generator) -> Act:
        """Goes for one of the treasures, more or less straight."""
        goal, lost = rng.integers(0, len(self.VALUES), n), rng.uniform(0, 0.6, (n, 1))

        def act(states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            astray = rng.random((n, 1)) < lost
            return np.where(astray, self.chance(states, earned, rng), self._towards(goal, states, rng))

        return act

    def _towards(self, goal: np.ndarray, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The move that leaves the least way to the treasure `goal` (n,), without a step on another; any of several."""
        after = np.clip(self._place(states)[:, None] + self.MOVES, 0, self.SIDE - 1)  # (n, 4, 2)
        other = (after[:, :, None] == self.PLACES).all(3) & (np.arange(len(self.VALUES)) != goal[:, None, None])
        way = np.abs(after - self.PLACES[goal][:, None]).sum(2) + 2.5 * other.any(2)
        return np.eye(4)[(way + 0.1 * rng.random(way.shape)).argmin(1)]

    def _place(self, states: np.ndarray) -> np.ndarray:
        return np.rint((states + 1) * (self.SIDE - 1) / 2).astype(int)

    def _told(self, places: np.ndarray) -> np.ndarray:
        return places * 2 / (self.SIDE - 1) - 1


class Buried(World):
    """A crossing of four ways, each two steps long, with a treasure at the end of one. Nobody is told of which, but it
    stays there when one tries again. The first end that is come to ends the try; each step costs. States are the place,
    from -1 to 1; actions are four numbers, of which the greatest says where to go: left, right, down or up."""

    name, length, states, actions, tries = "buried", 6, 2, 4, 8
    MOVES = np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5]])
    COST = 0.02

    def start(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Places, in the middle, and the number of the way."""
        return np.concatenate([np.zeros((n, 2)), rng.integers(0, 4, (n, 1))], 1)

    def again(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return states * [0, 0, 1]

    def seen(self, states: np.ndarray) -> np.ndarray:
        return states[:, :2]

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        before, way = states[:, :2], states[:, 2].astype(int)
        after = before + self.MOVES[actions.argmax(1)]
        after = np.where((after != 0).all(1, keepdims=True), before, after)  # nobody leaves a way at its side
        found = (after == 2 * self.MOVES[way]).all(1)
        return np.concatenate([after, states[:, 2:]], 1), found - self.COST, (np.abs(after) == 1).any(1)

    def chance(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.eye(4)[rng.integers(0, 4, len(states))]

    def expert(self, states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Of one who knows the way."""
        return np.eye(4)[states[:, 2].astype(int)]

    def player(self, n: int, rng: np.random.Generator) -> Act:
        """Goes to one of the ends, more or less straight."""
        goal, lost = rng.integers(0, 4, n), rng.uniform(0, 0.2, (n, 1))

        def act(states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.where(rng.random((n, 1)) < lost, self.chance(states, earned, rng), np.eye(4)[goal])

        return act


WORLDS: dict[str, World] = {world.name: world for world in (CartPole(), Treasures(), Buried())}


def world_of(name: str) -> World:
    """The world of that name. Raises UsageError for an unknown one."""
    if name not in WORLDS:
        raise UsageError(f"unknown world {name!r}. {nearest(name, WORLDS)}")
    return WORLDS[name]


def play(
    world: World, n: int, act: Act, rng: np.random.Generator, start: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """n episodes at once, from the states `start` on: "states" as they are seen (n, T, S), "actions" (n, T, A),
    "rewards" (n, T) and "steps" (n,), how many of T each took."""
    states = world.start(n, rng) if start is None else start
    going, steps = np.ones(n, bool), np.zeros(n, int)
    seen, done, rewarded, earned = [], [], [], np.zeros(n)
    while going.any() and len(seen) < world.length:
        actions = act(states, earned, rng)
        after, rewards, over = world.step(states, actions)
        seen.append(world.seen(states))
        done.append(actions)
        rewarded.append(rewards * going)
        earned = earned + rewarded[-1]
        steps += going
        states, going = np.where(going[:, None], after, states), going & ~over
    return {
        "states": np.stack(seen, 1),
        "actions": np.stack(done, 1),
        "rewards": np.stack(rewarded, 1),
        "steps": steps,
    }


def returns_of(world: World, act: Act, n: int, seed: int = 0) -> np.ndarray:
    """(n,) what `act` earns in an episode."""
    return play(world, n, act, np.random.default_rng(seed))["rewards"].sum(1)


def trajectories(folder: str | Path, name: str, *, episodes: int = 1000, seed: int = 0) -> Path:
    """Write `NAME.parquet` into `folder` and return its path: a row for each episode that a policy of some skill played
    in the world `name`, with the columns states, actions and rewards (a list a step), world and, where players try at
    the same thing, tries: a number for each thing."""
    world, rng = world_of(name), np.random.default_rng(seed)
    things = np.arange(episodes) // world.tries
    start = None if world.tries == 1 else world.start(things[-1] + 1, rng)[things]
    found = play(world, episodes, world.player(episodes, rng), rng, start)
    rows: dict[str, list[Any]] = {
        what: [values[:count].tolist() for values, count in zip(found[what], found["steps"])]
        for what in ("states", "actions", "rewards")
    }
    rows |= {"world": [name] * episodes} | ({} if world.tries == 1 else {"tries": things})
    table = pa.table(rows)
    return write_whole(Path(folder) / f"{name}.parquet", lambda part: pa.parquet.write_table(table, part))
