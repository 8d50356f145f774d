"""What should be done next, to earn so much? A policy learnt from what others did and got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc

from plait.core.roles import Model
from plait.data.rows import Rows
from plait.data.schema import Schema, Slot
from plait.data.table import Table
from plait.data.worlds import WORLDS, returns_of
from plait.errors import DataError, UsageError
from plait.evaluate import metrics
from plait.evaluate.intervals import Score, mean_score
from plait.evaluate.report import Section
from plait.evaluate.report import Table as Lines
from plait.tasks.acting import COLUMNS, SLOTS, Actor, Chained
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel
from plait.tasks.bind import Bound, PolicyBound

ROLES = ("policy",)
TAKES = ("series",)

WORLD = "world"  # the column that says in which of plait's own worlds the trajectories were played
EPISODES = 8  # in a world, of each return that is asked for


class Act(Task):
    """A policy learnt from trajectories, a row each: the columns states, actions and rewards, lists of steps. Answers
    are `next` (n, A), the action after the last state, and of what was done `error` and `usual` (n,).

    In one of plait's own worlds, which a column `world` names, the policy is also tried (`lived`). world: its name, or
    "". tried: what was asked there and what was got.
    """

    name = choice = "act"
    noun = "acting"
    roles = ROLES
    auto = "decision_transformer"
    needs_target = False
    longest = 1.0
    floor = "no policy"
    answers_rows = False

    target: str

    def __init__(self, params: dict[str, dict], world: str = ""):
        self.target, self.params, self.world = "actions", params, world
        self.tried: list[tuple[float, ...]] = []

    @classmethod
    def variant(cls, schema: Schema, table: Table) -> type[Task]:
        """Takes the three columns for series, by their names, and leaves all others alone."""
        if schema.targets:
            raise UsageError(f"--task act takes no target, got {', '.join(schema.targets)}: its columns are named")
        if missing := [name for name in COLUMNS if name not in table.names]:
            raise UsageError(
                f"--task act reads trajectories, a row each, in the columns {', '.join(COLUMNS)}, a list a step: "
                f"{table.source} has no {', '.join(missing)}, rename its columns"
            )
        for column in schema.columns:
            if column.name in COLUMNS:
                column.kind, column.use, column.why = "series", "input", f"the {column.name} of trajectories"
            elif column.use == "input":
                column.use, column.why = "ignored", "no part of a trajectory"
        schema.slots = [Slot(slot, "series", [name]) for name, slot in zip(COLUMNS, SLOTS)]
        return cls

    @classmethod
    def learn(cls, schema: Schema) -> Act:
        params = {name: schema.column(name).params for name in COLUMNS}
        if params["rewards"]["channels"] != 1:
            raise DataError(f"rewards: got {params['rewards']['channels']} numbers a step, expected one")
        return cls(params)

    def derive(self, rows: Rows) -> None:
        """Where the trajectories were played, if the table says one of plait's own worlds."""
        if WORLD not in rows.table.names:
            return
        found = pc.unique(rows.table.column(WORLD)).to_pylist()
        self.world = found[0] if len(found) == 1 and found[0] in WORLDS else ""
        got = tuple(self.params[name]["channels"] for name in ("states", "actions"))
        if self.world and got != (want := (WORLDS[self.world].states, WORLDS[self.world].actions)):
            raise DataError(
                f"the column {WORLD!r} says {self.world}, where states and actions are of {want[0]} and {want[1]} "
                f"numbers: got {got[0]} and {got[1]}, rename the column if it means another world"
            )

    def known(self, rows: Rows) -> np.ndarray:
        there = rows.presence()
        return there["states"] & there["actions"]

    def model(self, bound: Bound, objective: Objective | None = None) -> Actor:
        assert isinstance(bound, PolicyBound)
        longest, most = max(self.params[name]["steps"] for name in COLUMNS), bound.system.length
        if longest > most:
            raise DataError(f"got trajectories of {longest} steps, expected at most {most}: cut them into pieces")
        return (Chained if bound.system.tries > 1 else Actor)(bound, self.params)

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        """A row is a whole trajectory, which is many windows."""
        return Pace(16, int(np.clip(round(24_000 / rows), 4, 150)), 1e-3)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return outputs

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        return {}, {name: answers[name].astype(np.float64) for name in ("error", "usual")}

    def _error(self, answers: Answers, which: str) -> list[Score]:
        """Of the rows with an action to compare; one that the model has no number for is an error."""
        return [mean_score("action error", answers[which][np.isfinite(answers["usual"])], "lower")]

    def unknown(self, rows: Rows, index: np.ndarray) -> dict[str, int]:
        return {"trajectory without states and actions": len(index)} if len(index) else {}

    def aside(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, queries: np.ndarray | None = None
    ) -> dict[str, int]:
        nothing = int((~np.isfinite(answers["usual"])).sum())
        return {"trajectory without a step that has both a state and an action": nothing} if nothing else {}

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self._error(answers, "error")

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self._error(answers, "usual")

    def lived(self, model: TaskModel) -> tuple[list[Score], list[Score]]:
        """What it earns in its world when it is asked for the most, beside one who does not look; and how what it gets
        follows what it is asked for."""
        if not self.world:
            return [], []
        assert isinstance(model, Actor)
        world, levels = WORLDS[self.world], model.levels.double().cpu().numpy()
        asked = np.repeat(levels, EPISODES)
        tries = model.tried(self.world, asked)
        got, chance, best = (
            tries[-1],
            *(returns_of(world, who, 256, seed=1) for who in (world.chance, world.expert)),
        )
        self.tried = [(level, *tries[:, asked == level].mean(1)) for level in levels]
        most, usual = got[asked == levels[-1]], float(model.usual)

        def of(rows: np.ndarray) -> list[Score]:
            figures = {"return": rows, "return less the data's mean": rows - usual}
            figures["return of the expert's"] = rows / best.mean()
            return [mean_score(name, values, "higher") for name, values in figures.items()]

        later = []  # of one who tries again, beside one who learns nothing from it
        if len(tries) > 1:
            gain = tries[-1] - tries[0]
            later = [mean_score("return less the first try's", gain[asked == levels[-1]], "higher")]
        follows = metrics.regression(asked, got)[-1]._replace(name="asked and got, rank correlation")
        floor = [score._replace(value=0.0, low=0.0, high=0.0) for score in (*later, follows)]
        return [*of(most), *later, follows], [*of(chance), *floor]

    def guide(self, truth: Answers, answers: Answers) -> float:
        return -self._error(answers, "error")[0].value

    def columns(self, answers: Answers) -> dict[str, Any]:
        return {"action": answers["next"].astype(np.float64).tolist()}

    def sections(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, again: Callable[[np.ndarray], Answers]
    ) -> list[Section]:
        """What was asked for in the world, and what was got."""
        count = len(self.tried[0]) - 1 if self.tried else 0
        got = [f"return got, mean{f' of try {n + 1}' if count > 1 else ''}" for n in range(count)]
        lines = Lines(("return asked for", *got), self.tried)
        return [Section(f"What is asked and what is got: {self.world}", "table", lines)] if self.tried else []

    def describe(self) -> str:
        return f"{self.params['actions']['channels']} numbers a step" + (f", in {self.world}" if self.world else "")

    def headline(self, scores: list[Score]) -> list[Score]:
        return scores

    def to_json(self) -> dict:
        return {"task": self.name, "world": self.world}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Act:
        made = cls.learn(schema)
        made.world = state["world"]
        return made


TASKS = (Act,)
