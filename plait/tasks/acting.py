"""The models of `act`: one that sees the last steps of a trajectory, and one that sees several tries, one after
another."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.data.rows import Rows
from plait.data.worlds import WORLDS, play, returns_of
from plait.parts.scaling import Standardise
from plait.tasks.base import TaskModel
from plait.tasks.bind import Bound, PolicyBound

COLUMNS, SLOTS = ("states", "actions", "rewards"), ("states", "actions", "returns")
WINDOW = 20  # steps that the policy sees at once
LEVELS = 8  # returns that are asked for in a world
TRIES = "tries"  # the column whose equal cells mark tries at the same thing


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
        """States as the kind gives them, actions, rewards and the returns still to come in the columns' own units, (B,
        T, C) of one T, and which steps have each (B, T)."""
        keep = {name: batch["keep"][slot] & batch["present"][slot][:, None] for name, slot in zip(COLUMNS, SLOTS)}
        x = {name: batch[slot] for name, slot in zip(COLUMNS, SLOTS)}
        x |= {n: unit.inverse(x[n]).float() for n, unit in (("actions", self.actions), ("rewards", self.rewards))}
        count = max(v.shape[1] for v in x.values())
        x = {n: F.pad(v.masked_fill(~keep[n][..., None], 0.0), (0, 0, 0, count - v.shape[1])) for n, v in x.items()}
        keep = {n: F.pad(k, (0, count - k.shape[1])) for n, k in keep.items()}
        x["returns"] = x["rewards"].flip(1).cumsum(1).flip(1)  # what this step and all after it earn
        keep["returns"] = keep["rewards"] | keep["states"]
        return x, keep

    def policy(self, x: dict[str, Tensor], keep: dict[str, Tensor], steps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, A) actions from -1 to 1, and the layers' losses: of whole sequences (B, T, C), steps (B, T)."""
        ready = {"states": x["states"], "actions": x["actions"] / self.span, "returns": x["returns"] / self.scale}
        made = self.bound.system.act(ready | {"keep": {n: keep[n] for n in ready}, "steps": steps})
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
        real = keep["actions"] & keep["states"]
        made = self.policy(*self.windows(x, keep, 0))[0].unflatten(0, (len(real), -1)).flatten(1, 2)
        so_far = x["returns"][:, :1, 0] - x["returns"][..., 0]
        asked = self.levels[-1:].expand(len(real))
        return {
            "next": self.next(x["states"], x["actions"], so_far, keep, asked),
            **self.off(made[:, : real.shape[1]] * self.span, x["actions"], real),
        }

    def off(self, made: Tensor, done: Tensor, real: Tensor) -> dict[str, Tensor]:
        """`error` and `usual` of `answer`: of the actions made and done (B, T, A), at the real steps (B, T)."""
        unit, found = self.actions, {"error": made - done, "usual": self.actions.mean - done}
        return {
            n: (v / unit.std).square().mean(2).masked_fill(~real, 0.0).sum(1) / real.sum(1) for n, v in found.items()
        }

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
            past["states"].append(self.states(torch.from_numpy(WORLDS[name].seen(states)).to(device)))
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

    def tried(self, name: str, asked: np.ndarray, seed: int = 0) -> np.ndarray:
        """(R, n) what this policy earns in each of its R tries at the same thing, as `earned`."""
        return self.earned(name, asked, seed)[None]


class Chained(Actor):
    """As `Actor`, of a policy that reads tries one after another, each of them whole.

    A row in training is the last of a chain: before it come up to `tries - 1` others of the training rows at the same
    thing, sorted by what they earned, and the best of them takes its place. All are told to have been asked for what
    the best earned, and its actions are learnt. In a world it tries again and again, its own tries before it.
    """

    def before_training(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        super().before_training(rows, index, seed)
        parts = [self.trajectories(rows.batch(index[at : at + 256])) for at in range(0, len(index), 256)]
        most = max(keep["states"].shape[1] for _, keep in parts)

        def whole(values: list[Tensor]) -> Tensor:
            return torch.cat([F.pad(v, (0, 0) * (v.dim() - 2) + (0, most - v.shape[1])) for v in values])

        self.past = {n: whole([x[n] for x, _ in parts]) for n in COLUMNS}
        self.there = whole([keep["actions"] & keep["states"] for _, keep in parts])
        named = rows.table.column(TRIES).to_numpy()[index] if TRIES in rows.table.names else np.zeros(len(index))
        self.thing = torch.from_numpy(np.unique(named, return_inverse=True)[1])  # (N,) what each is a try at
        self.place = torch.full((len(rows),), -1)
        self.place[torch.from_numpy(np.asarray(index))] = torch.arange(len(index))

    def chains(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(B, R) which of the training rows, the best last, and whether there are so many; of the rows (B,)."""
        tries, me = self.bound.system.tries, self.place[rows.cpu()]
        order = torch.rand(len(me), len(self.thing), generator=generator)
        order = order.masked_fill(self.thing != self.thing[me][:, None], torch.inf)
        order, found = order.scatter(1, me[:, None], -1.0).sort(1)
        order, found = (
            F.pad(v, (0, max(0, tries - v.shape[1])), value=w)[:, :tries] for v, w in ((order, torch.inf), (found, 0))
        )
        count = torch.randint(1, tries + 1, (len(me), 1), generator=generator)
        there = (torch.arange(tries) < count) & (order < torch.inf)
        total = self.past["rewards"].sum((1, 2)).cpu()[found].masked_fill(~there, -torch.inf)
        last = total.argsort(1)
        return found.gather(1, last), there.gather(1, last)

    def told(self, x: dict[str, Tensor], keep: Tensor, asked: Tensor, over: bool = True) -> tuple[dict, dict]:
        """A try as the policy reads it: what was seen, done and earned (B, T, C) in the columns' own units, its steps
        (B, T), to earn `asked` (B,). over: else its last action, and what that earned, are still to come."""
        rewards = x["rewards"].masked_fill(~keep[..., None], 0.0)
        returns = asked[:, None, None] - rewards.cumsum(1) + rewards
        last = keep & ~F.pad(keep[:, 1:], (0, 1))
        enough = rewards.sum((1, 2)) >= asked - 1e-4 * self.scale
        acted = keep if over else keep & ~last
        ready = {
            "states": x["states"], "actions": x["actions"] / self.span, "returns": returns / self.scale,
            "rewards": rewards / self.scale, "done": (last & enough[:, None])[..., None].float(),
            "steps": torch.arange(keep.shape[1], device=keep.device).expand(len(keep), -1),
        }  # fmt: skip
        after = dict.fromkeys(("actions", "rewards", "done"), acted)
        return ready, dict.fromkeys(("states", "returns"), keep) | after

    def say(self, tries: list[tuple[dict, dict]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Actions (B, T, A), in the columns' own units, of the last of some tries that were `told`, and losses."""
        batch: dict[str, Any] = {n: torch.cat([x[n] for x, _ in tries], 1) for n in tries[0][0]}
        batch["keep"] = {n: torch.cat([keep[n] for _, keep in tries], 1) for n in tries[0][1]}
        made = self.bound.system.act(batch)
        count = tries[-1][1]["states"].shape[1]
        return made["actions"][:, -count:].float() * self.span, dict(made["losses"])

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """As `Actor`'s; each row is a first try."""
        x, keep = self.trajectories(batch)
        real, there = keep["actions"] & keep["states"], keep["states"]
        made, _ = self.say([self.told(x, there, x["returns"][:, 0, 0])])
        after, _ = self.say([self.told(x, there, self.levels[-1:].expand(len(there)), over=False)])
        last = (there.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, after.shape[2])
        return {"next": after.gather(1, last)[:, 0], **self.off(made, x["actions"], real)}

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        found, there = self.chains(batch["row"], generator)
        count = int(self.there[found[there]].sum(1).max())  # steps of the longest
        device = self.span.device
        x = {n: v[found][:, :, :count].flatten(0, 1).to(device) for n, v in self.past.items()}
        keep = (self.there[found][:, :, :count] & there[..., None]).flatten(0, 1).to(device)
        tries = found.shape[1]
        best = x["rewards"].sum((1, 2)).unflatten(0, (-1, tries))[:, -1:].expand(-1, tries)
        ready, real = self.told(x, keep, best.flatten())
        apart = [({n: v.unflatten(0, (-1, tries))[:, r] for n, v in ready.items()},
                  {n: v.unflatten(0, (-1, tries))[:, r] for n, v in real.items()}) for r in range(tries)]  # fmt: skip
        made, losses = self.say(apart)
        error = ((made - x["actions"].unflatten(0, (-1, tries))[:, -1]) / self.span).square().mean(2)
        real_last = keep.unflatten(0, (-1, tries))[:, -1]
        return {"loss": error.masked_fill(~real_last, 0.0).sum() / real_last.sum().clamp(min=1)} | losses

    def earned(self, name: str, asked: np.ndarray, seed: int = 0) -> np.ndarray:
        """(n,) what the last try earns in the world `name`."""
        return self.tried(name, asked, seed)[-1]

    @torch.inference_mode()
    def tried(self, name: str, asked: np.ndarray, seed: int = 0) -> np.ndarray:
        world, rng, device, training = WORLDS[name], np.random.default_rng(seed), self.span.device, self.training
        wanted = torch.as_tensor(asked, dtype=torch.float32, device=device)
        before: list[tuple[dict, dict]] = []
        got, start = [], world.start(len(asked), rng)

        def read(found: dict[str, np.ndarray], keep: Tensor, over: bool) -> tuple[dict, dict]:
            x = {n: torch.from_numpy(found[n]).to(device) for n in COLUMNS}
            x = {"states": self.states(x["states"]), "actions": x["actions"].float(), "rewards": x["rewards"].float()}
            return self.told(x | {"rewards": x["rewards"][..., None]}, keep, wanted, over)

        def act(states: np.ndarray, earned: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            now["states"].append(world.seen(states))
            now["earned"].append(earned)
            now["actions"].append(np.zeros((len(states), len(self.span))))  # not yet done
            now["rewards"] = [*np.diff(now["earned"], axis=0), 0 * earned]
            keep = torch.ones(len(states), len(now["earned"]), dtype=torch.bool, device=device)
            made, _ = self.say([*before, read({n: np.stack(now[n], 1) for n in COLUMNS}, keep, False)])
            now["actions"][-1] = made[:, -1].double().cpu().numpy()
            return now["actions"][-1]

        self.eval()
        for _ in range(self.bound.system.tries):
            now: dict[str, list] = {"states": [], "earned": [], "actions": []}
            found = play(world, len(asked), act, rng, start)
            there = np.arange(found["rewards"].shape[1]) < found["steps"][:, None]
            before.append(read(found, torch.from_numpy(there).to(device), True))
            got.append(found["rewards"].sum(1))
            start = world.again(start, rng)
        self.train(training)
        return np.stack(got)
