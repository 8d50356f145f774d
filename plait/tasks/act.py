"""What should be done next, to earn so much? A policy learnt from what others did and got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

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
from plait.parts.scaling import Standardise
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel
from plait.tasks.bind import Bound, PolicyBound

ROLES = ("policy",)
TAKES = ("series",)

COLUMNS, SLOTS = ("states", "actions", "rewards"), ("states", "actions", "returns")
WINDOW = 20  # steps that the policy sees at once
WORLD = "world"  # the column that says in which of plait's own worlds the trajectories were played
LEVELS, EPISODES = 8, 8  # returns that are asked for in a world, and how often each


class Actor(TaskModel):
    """Trajectories in; what to do at each step, in the columns' own units, out. Sees `WINDOW` steps at a time.

    params: what the schema has learnt of each column. Learnt before training: span (A,), the largest action of each
    channel either way, which is 1 to the policy; scale (1,), the largest return, which is 1 to it; levels (L,), the
    returns between the training rows' least and most, the most of which is what is asked where nobody says.
    """

    bound: PolicyBound
    span: Tensor
    scale: Tensor
    levels: Tensor
    usual: Tensor

    def __init__(self, bound: Bound, params: dict[str, dict]):
        super().__init__(bound)
        self.states, self.actions, self.rewards = (Standardise(params[n]["mean"], params[n]["std"]) for n in COLUMNS)
        self.register_buffer("span", torch.ones(params["actions"]["channels"]))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("levels", torch.zeros(LEVELS))
        self.register_buffer("usual", torch.zeros(1))  # the mean return of the training rows

    def before_training(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        spans, returns = [], []
        for at in range(0, len(index), 256):
            x, keep = self.trajectories(rows.batch(index[at : at + 256]))
            spans.append(x["actions"].masked_fill(~keep["actions"][..., None], 0.0).abs().amax((0, 1)))
            returns.append(x["returns"][:, 0, 0])
        span, earned = torch.stack(spans).amax(0), torch.cat(returns)
        self.span.copy_(torch.where(span > 0, span, 1.0))
        self.scale.copy_(earned.abs().max().clamp(min=1e-6))
        self.usual.copy_(earned.mean())
        least, most = earned.quantile(0.02), earned.quantile(0.98)
        self.levels.copy_(least + (most - least) * torch.linspace(0, 1, LEVELS))

    def trajectories(self, batch: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """States as the kind gives them, actions and the returns still to come in the columns' own units, (B, T, C) of
        one T, and which steps have each (B, T)."""
        keep = {name: batch["keep"][slot] & batch["present"][slot][:, None] for name, slot in zip(COLUMNS, SLOTS)}
        x = {name: batch[slot] for name, slot in zip(COLUMNS, SLOTS)}
        x |= {n: unit.inverse(x[n]).float() for n, unit in (("actions", self.actions), ("rewards", self.rewards))}
        count = max(v.shape[1] for v in x.values())
        x = {n: F.pad(v.masked_fill(~keep[n][..., None], 0.0), (0, 0, 0, count - v.shape[1])) for n, v in x.items()}
        keep = {n: F.pad(k, (0, count - k.shape[1])) for n, k in keep.items()}
        x["returns"] = x.pop("rewards").flip(1).cumsum(1).flip(1)  # what this step and all after it earn
        keep["returns"] = keep.pop("rewards") | keep["states"]
        return x, keep

    def policy(self, x: dict[str, Tensor], keep: dict[str, Tensor], steps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, A) actions from -1 to 1, and the layers' losses: of whole sequences (B, T, C), steps (B, T)."""
        ready = {"states": x["states"], "actions": x["actions"] / self.span, "returns": x["returns"] / self.scale}
        made = self.bound.system.act(ready | {"keep": keep, "steps": steps})
        return made["actions"].float(), dict(made["losses"])

    def windows(self, x: dict[str, Tensor], keep: dict[str, Tensor], offset: int) -> tuple[dict, dict, Tensor]:
        """Sequences (B, T, C) cut into windows (B * W, WINDOW, C), the first of which begins `offset` steps before
        them; what of these is real, and their steps (B * W, WINDOW)."""
        rows, count = keep["states"].shape
        after = -(count + offset) % WINDOW

        def cut(v: Tensor) -> Tensor:
            return F.pad(v, (0, 0) * (v.dim() - 2) + (offset, after)).unflatten(1, (-1, WINDOW)).flatten(0, 1)

        steps = torch.arange(count, device=x["states"].device).expand(rows, -1)
        return {n: cut(v) for n, v in x.items()}, {n: cut(k) for n, k in keep.items()}, cut(steps)

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`next` (B, A), what to do after the last state, to earn in all the most that the training rows did. Of what
        was done: `error` (B,), the squared error of the actions in spreads, of a policy that knows what the row still
        earned, and `usual` (B,), that of the mean action; NaN where there is nothing to compare."""
        x, keep = self.trajectories(batch)
        real, unit = keep["actions"] & keep["states"], self.actions
        made = self.policy(*self.windows(x, keep, 0))[0].unflatten(0, (len(real), -1)).flatten(1, 2)
        off = {"error": made[:, : real.shape[1]] * self.span - x["actions"], "usual": unit.mean - x["actions"]}
        off = {n: (v / unit.std).square().mean(2).masked_fill(~real, 0.0).sum(1) / real.sum(1) for n, v in off.items()}
        so_far = x["returns"][:, :1, 0] - x["returns"][..., 0]
        return {"next": self.next(x["states"], x["actions"], so_far, keep, self.levels[-1:].expand(len(real))), **off}

    def next(self, states: Tensor, actions: Tensor, earned: Tensor, keep: dict[str, Tensor], asked: Tensor) -> Tensor:
        """(B, A): what to do after the last state (B, T, S) that is real, to earn `asked` (B,) in all. earned (B, T):
        before each step."""
        last = (keep["states"].sum(1) - 1).clamp(min=0)  # (B,)
        at = last[:, None] + torch.arange(1 - WINDOW, 1, device=last.device)
        x = {"states": states, "actions": actions, "returns": (asked[:, None] - earned)[..., None]}
        x = {n: v.gather(1, at.clamp(min=0)[..., None].expand(-1, -1, v.shape[2])) for n, v in x.items()}
        keep = {n: k.gather(1, at.clamp(min=0)) & (at >= 0) for n, k in keep.items()}
        return self.policy(x, keep, at.clamp(min=0))[0][:, -1] * self.span

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        x, keep = self.trajectories(batch)
        wx, wk, steps = self.windows(x, keep, int(torch.randint(WINDOW, (1,), generator=generator)))
        full = (wk["actions"] & wk["states"]).any(1)
        wx, wk = {n: v[full] for n, v in wx.items()}, {n: k[full] for n, k in wk.items()}
        made, losses = self.policy(wx, wk, steps[full])
        real = wk["actions"] & wk["states"]
        error = (made - wx["actions"] / self.span).square().mean(2)
        return {"loss": error.masked_fill(~real, 0.0).sum() / real.sum().clamp(min=1)} | losses

    @torch.inference_mode()
    def earned(self, name: str, asked: np.ndarray, seed: int = 0) -> np.ndarray:
        """(n,) what this policy earns in the world `name`, an episode each, when it is asked for `asked` (n,)."""
        device, training = self.span.device, self.training
        wanted = torch.as_tensor(asked, dtype=torch.float32, device=device)
        past: dict[str, list[Tensor]] = {"states": [], "actions": [], "earned": []}

        def act(states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            past["states"].append(self.states(torch.from_numpy(states).to(device)))
            past["earned"].append(torch.as_tensor(earned, dtype=torch.float32, device=device))
            past["actions"].append(torch.zeros(len(states), len(self.span), device=device))  # not yet done
            x = {what: torch.stack(values[-WINDOW:], 1) for what, values in past.items()}
            there = torch.ones(x["earned"].shape, dtype=torch.bool, device=device)
            keep = {"states": there, "returns": there, "actions": there.clone()}
            keep["actions"][:, -1] = False
            returns = (wanted[:, None] - x["earned"])[..., None]
            first = len(past["earned"]) - there.shape[1]
            steps = torch.arange(first, first + there.shape[1], device=device).expand(len(states), -1)
            made, _ = self.policy({"states": x["states"], "actions": x["actions"], "returns": returns}, keep, steps)
            past["actions"][-1] = made[:, -1] * self.span
            return past["actions"][-1].double().cpu().numpy()

        self.eval()
        found = returns_of(WORLDS[name], act, len(asked), seed)
        self.train(training)
        return found


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
        self.tried: list[tuple[float, float]] = []

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
        return Actor(bound, self.params)

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        """A row is a whole trajectory, which is many windows."""
        return Pace(16, int(np.clip(round(24_000 / rows), 4, 150)), 1e-3)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return outputs

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        return {}, {name: answers[name].astype(np.float64) for name in ("error", "usual")}

    def _error(self, rows: np.ndarray) -> list[Score]:
        return [mean_score("action error", rows[np.isfinite(rows)], "lower")]

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self._error(answers["error"])

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self._error(answers["usual"])

    def lived(self, model: TaskModel) -> tuple[list[Score], list[Score]]:
        """What it earns in its world when it is asked for the most, beside one who does not look; and how what it gets
        follows what it is asked for."""
        if not self.world:
            return [], []
        assert isinstance(model, Actor)
        world, levels = WORLDS[self.world], model.levels.double().cpu().numpy()
        asked = np.repeat(levels, EPISODES)
        got, chance, best = (
            model.earned(self.world, asked),
            *(returns_of(world, who, 256, seed=1) for who in (world.chance, world.expert)),
        )
        self.tried = [(level, got[asked == level].mean()) for level in levels]
        most, usual = got[asked == levels[-1]], float(model.usual)

        def of(rows: np.ndarray) -> list[Score]:
            figures = {"return": rows, "return less the data's mean": rows - usual}
            figures["return of the expert's"] = rows / best.mean()
            return [mean_score(name, values, "higher") for name, values in figures.items()]

        follows = metrics.regression(asked, got)[-1]._replace(name="asked and got, rank correlation")
        return [*of(most), follows], [*of(chance), follows._replace(value=0.0, low=0.0, high=0.0)]

    def guide(self, truth: Answers, answers: Answers) -> float:
        return -self._error(answers["error"])[0].value

    def columns(self, answers: Answers) -> dict[str, Any]:
        return {"action": answers["next"].astype(np.float64).tolist()}

    def sections(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, again: Callable[[np.ndarray], Answers]
    ) -> list[Section]:
        """What was asked for in the world, and what was got."""
        lines = Lines(("return asked for", "return got, mean"), self.tried)
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
