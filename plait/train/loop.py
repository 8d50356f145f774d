"""The training loop: one path from batches to the best weights, that can be killed and goes on as if it had not been.

Nothing random outlives a step. Before each, the global random state and the step's own generator are seeded from (seed,
step, process),
and batches are a function of (seed, epoch): a resumed run computes bit for bit what an uninterrupted one does, on the
same machine.
With a time budget the schedule follows the clock, and no two runs are the same.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.files import write_whole
from plait.core.weights import load_strict
from plait.errors import PlaitError, UsageError
from plait.train import checkpoint, optim
from plait.train.memory import peak_memory
from plait.train.parallel import Team
from plait.train.plan import History, Job, Plan, Progress
from plait.train.steps import Interrupt, append, line, plain, seed_everything, since_gain, step_seed

__all__ = ["History", "Job", "Plan", "Progress", "train"]

METRICS = "metrics.jsonl"
CHANGEABLE = ("epochs", "patience", "minutes", "checkpoint_seconds")  # what a resumed run may set anew
SHARE = 0.02  # of the time may go into checkpoints


def train(
    job: Job,
    plan: Plan,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    device: str | None = None,
) -> History:
    """Train `job.model` by `plan`; at the end it has the weights of the best epoch and is in eval mode.

    folder: takes metrics.jsonl (a line per epoch) and checkpoints/; nothing is written elsewhere.
    resume: go on from the newest checkpoint there, if there is one; else what an earlier run left there is removed.
    device: where to train; None takes the accelerator of this machine or, without one, the CPU. With several processes
    (`accelerate
        launch`, `torchrun`) each has its own device and its own rows of every batch; `folder` must be visible to all.

    Ctrl-C or SIGTERM finishes the step, saves, and returns with stopped="interrupted"; a second one stops at once.
    Raises UsageError for a loss that is not finite or a plan that does not fit the checkpoint, DataError where saving
    fails.
    """
    team = Team(device)
    cuda = [team.device] if team.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), Interrupt() as interrupt:
        trainer = Trainer(job, plan, Path(folder), team, interrupt, progress, resume)
        return trainer.run()


class Trainer:
    """One run: `step` steps and `epoch` whole epochs are behind it."""

    def __init__(
        self,
        job: Job,
        plan: Plan,
        folder: Path,
        team: Team,
        interrupt: Interrupt,
        progress: Progress | None,
        resume: bool,
    ):
        self.job, self.plan, self.folder, self.team, self.interrupt = job, plan, folder, team, interrupt
        self.progress = progress if team.main else None
        self.total = plan.epochs * job.steps_per_epoch
        self.step = self.epoch = 0
        self.rows: list[dict] = []
        self.best_score = -math.inf
        self.best_epoch: int | None = None
        self.best: dict[str, Tensor] = {}
        self.sums: dict[str, float] = {}  # of each loss over the epoch's steps
        self.lr = 0.0  # of the last step
        self.before = 0.0  # seconds of earlier sessions
        self.score_seconds = 0.0
        found = self._found(resume)
        if found:
            load_strict(job.model, found.tensors["model"])
            if job.state is not None:
                load_strict(job.state, found.tensors["state"])
        # FSDP2 changes the model for good: an untouched copy is scored, and takes the best weights in the end.
        self.untouched = copy.deepcopy(job.model) if team.sharded else job.model
        self.model = team.place(job.model)
        if job.state is not None:
            job.state.to(team.device)
        self.generator = torch.Generator(team.device)
        self.optimizer = optim.adamw(job.model, plan.lr, plan.weight_decay)
        self.params = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.names = [n for g in self.optimizer.param_groups for n in g["names"]]
        self.average = [p.detach().clone() for p in self.params] if plan.ema else []
        if found:
            self._restore(found)
        self.pending: list[tuple[int, list[str], Tensor]] = []  # losses still on the device
        self.seen = dict(loss=math.nan, rows_per_s=0.0, memory_gb=0.0)
        self.start = self.read_at = self.saved_at = time.monotonic()
        self.begun_at = self._share_done(self.before)
        self.save_cost, self.rows_read = 0.0, 0
        if team.main:
            folder.mkdir(parents=True, exist_ok=True)
            self._write_metrics()

    # -- the run

    def run(self) -> History:
        stopped = None
        while stopped is None:
            if self.epoch >= self.plan.epochs:
                stopped = "finished"
            elif self._in_vain():
                stopped = "early"
            else:
                stopped = self._epoch()
        if stopped != "interrupted" and self.saved != (self.step, len(self.rows)):
            self._save()
        self.job.model = self._for_scoring()
        if self.best:
            load_strict(self.job.model, self.best)
        return History(self.rows, self.best_epoch, stopped, self.elapsed())

    def _in_vain(self) -> bool:
        """Whether the last epochs brought nothing that was worth them, or none can bring more."""
        plan = self.plan
        if plan.enough is not None and self.best_score >= plan.enough - plan.least_gain:
            return True
        return plan.patience is not None and since_gain(self.rows, plan.least_gain, plan.least_alone) >= plan.patience

    def _epoch(self) -> str | None:
        """Train to the end of the epoch and score it. Returns why to stop, if so."""
        spe, job = self.job.steps_per_epoch, self.job
        done = self.step - self.epoch * spe
        self.model.train()
        late = self._late(self.team.same(self.elapsed()))
        if done < spe and not late:
            for batch in job.batches(self.epoch, done):
                if done == spe:
                    raise PlaitError(f"epoch {self.epoch}: got more batches than steps_per_epoch, {spe}")
                elapsed, stop, due = self._step(batch)
                done += 1
                late = self._late(elapsed)
                if stop:
                    self._save()
                    return "interrupted"
                if late:
                    break
                if due:
                    self._save()
            if done < spe and not late:
                raise PlaitError(f"epoch {self.epoch}: got {done} batches, expected steps_per_epoch, {spe}")
        if not (self.rows and self.rows[-1]["step"] == self.step):
            self._score(done == spe)
        if done == spe:
            self.epoch += 1
            self.sums = {}
        now = time.monotonic()
        since = now - self.saved_at
        due = since >= self.save_cost / SHARE and since >= self.plan.checkpoint_seconds / 10
        save, asked = self.team.agree(due and self.team.main, self.interrupt.asked)
        if save or asked:
            self._save()
        return "interrupted" if asked else "minutes" if late else None

    def _step(self, batch: dict) -> tuple[float, bool, bool]:
        """One step. Returns, agreed between processes: the seconds so far, whether to stop, whether a checkpoint is
        due."""
        plan, team = self.plan, self.team
        batch, rows, weight = team.share(batch)
        seed = step_seed(plan.seed, self.step, team.rank)
        seed_everything(seed, team.device)
        self.generator.manual_seed(seed)
        with torch.autocast(team.device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            losses = self.model(batch, self.generator)
            total = sum(losses.values())
        self.pending.append((self.step, list(losses), torch.stack([v.detach().float() for v in losses.values()])))
        self.rows_read += rows
        now = time.monotonic()
        fault = self._read(now) if team.device.type == "cpu" or now - self.read_at > 0.5 else None
        due = team.main and now - self.saved_at >= max(
            plan.checkpoint_seconds, plan.checkpoint_seconds and self.save_cost / SHARE
        )
        bad, asked, save, elapsed = team.agree(
            fault is not None, self.interrupt.asked, due, self.elapsed() if team.main else 0.0
        )
        if bad:
            self._raise(fault)
        self.lr = plan.lr * optim.schedule(self._share_done(elapsed, 1), plan.warmup)
        optim.set_rate(self.optimizer, self.lr)
        (total if weight == 1.0 else total * weight).backward()
        if plan.clip is not None:
            optim.clip(self.params, plan.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:  # a young average would still be the first weights: its decay grows with the steps
            decay = min(plan.ema or 0.0, self.step / (self.step + 9))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.params], 1.0 - decay)
        self.job.after_step()
        if self.progress:
            done = self._share_done(elapsed)
            left = (now - self.start) * (1.0 - done) / max(done - self.begun_at, 1e-9)
            self.progress.update(
                dict(step=self.step, total=self.total, epoch=self.epoch + 1, lr=self.lr, seconds_left=left, **self.seen)
            )
        return elapsed, bool(asked), bool(save)

    def _score(self, complete: bool) -> None:
        """Score the weights (their average, if there is one), write the row, keep them if they are the best."""
        self._read_all()
        start = time.monotonic()
        seed_everything(step_seed(self.plan.seed, self.step), self.team.device)
        self._swap()
        model = self._for_scoring()
        with (
            torch.no_grad(),
            torch.autocast(self.team.device.type, torch.bfloat16, enabled=self.plan.precision == "bf16"),
        ):
            score, notes = self.team.same(self.job.score(model))
        score = float(score) if math.isfinite(score) else -math.inf
        if self.best_epoch is None or score > self.best_score:
            self.best_score, self.best_epoch = score, self.epoch + 1
            self.best = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}
        self._swap()
        self.score_seconds = self.team.same(time.monotonic() - start)
        steps = self.step - self.epoch * self.job.steps_per_epoch
        losses = dict(zip(self.sums, self.team.mean([v / steps for v in self.sums.values()]))) if steps else {}
        row: dict[str, Any] = dict(
            epoch=self.epoch + 1,
            step=self.step,
            seconds=round(self.elapsed(), 3),
            score=score,
            loss=sum(losses.values()),
        )
        row |= dict(losses=losses, lr=self.lr, complete=complete)
        if taken := row.keys() & notes.keys():
            raise PlaitError(
                f"score() returned {', '.join(sorted(taken))}, which the trainer writes itself: give them other names"
            )
        row = plain(row | notes)
        # an epoch cut short by the clock, now completed
        again = bool(self.rows) and self.rows[-1]["epoch"] == row["epoch"]
        self.rows[len(self.rows) - again :] = [row]
        if self.team.main:
            self._write_metrics() if again else append(self.folder / METRICS, row)
        if self.progress:
            self.progress.epoch(row)
        self.read_at, self.rows_read = time.monotonic(), 0

    def _for_scoring(self) -> nn.Module:
        """A model in eval mode that each process can call by itself: of a sharded one the untouched copy stands in."""
        if self.team.sharded:
            load_strict(self.untouched.to(self.team.device), optim.whole_state(self.job.model.state_dict()))
        return self.untouched.eval()

    def _swap(self) -> None:
        """Exchange the weights and their average."""
        with torch.no_grad():
            for p, a in zip(self.params, self.average):  # no average: nothing to do
                kept = p.detach().clone()
                p.copy_(a)
                a.copy_(kept)

    # -- time

    def elapsed(self) -> float:
        return self.before + time.monotonic() - self.start

    def _budget(self) -> float:
        """Seconds for the steps: what scoring the last of them will need is set aside, but never more than half."""
        return (
            max(self.plan.minutes * 60.0 - self.score_seconds, self.plan.minutes * 30.0)
            if self.plan.minutes
            else math.inf
        )

    def _late(self, elapsed: float) -> bool:
        return elapsed >= self._budget()

    def _share_done(self, elapsed: float, ahead: int = 0) -> float:
        return min(max((self.step + ahead) / self.total, elapsed / self._budget()), 1.0)

    # -- losses

    def _read(self, now: float) -> tuple[int, dict[str, float]] | None:
        """Fetch the pending losses (waits for the device) and add them up. Returns the first step with one that is not
        finite."""
        values = torch.cat([v for _, _, v in self.pending]).tolist()
        pending, self.pending = self.pending, []
        for step, names, _ in pending:
            found, values = dict(zip(names, values)), values[len(names) :]
            for name, value in found.items():
                if not math.isfinite(value):
                    return step, found
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.seen["loss"] = sum(found.values())
        if now - self.read_at > 0.5 or not self.seen["rows_per_s"]:
            self.seen["rows_per_s"] = self.rows_read / max(now - self.read_at, 1e-9)
            self.seen["memory_gb"] = peak_memory(self.team.device) / 1e9
            self.read_at, self.rows_read = now, 0
        return None

    def _read_all(self) -> None:
        fault = self._read(time.monotonic()) if self.pending else None
        if self.team.agree(fault is not None)[0]:
            self._raise(fault)

    def _raise(self, fault: tuple[int, dict[str, float]] | None) -> None:
        if fault is None:
            raise UsageError("another process met a loss that is not finite: see its message")
        step, losses = fault
        terms = ", ".join(f"{k} {v:g}" for k, v in losses.items())
        mend = f"lower --lr (now {self.plan.lr:g})" + (
            ", or train with --precision fp32" if self.plan.precision == "bf16" else ""
        )
        last = f"The checkpoint of step {self.saved[0]} is whole." if self.saved[0] else "No checkpoint had been saved."
        raise UsageError(
            f"the loss is not finite at step {step} (epoch {self.epoch + 1}): {terms}. {last} To mend it, {mend}."
        )

    # -- checkpoints

    def _found(self, resume: bool) -> checkpoint.Checkpoint | None:
        self.saved = (0, 0)  # steps and rows of the newest checkpoint
        if not resume:
            if self.team.main:
                checkpoint.remove(self.folder)
            return None
        found = checkpoint.load(self.folder)
        if found is None:
            return None
        was, now = asdict(Plan(**found.state["plan"])), asdict(self.plan)  # an older plan lacks what is new
        changed = [
            f"{k} (was {was.get(k)}, now {v})" for k, v in now.items() if k not in CHANGEABLE and was.get(k) != v
        ]
        if found.state["steps_per_epoch"] != self.job.steps_per_epoch:
            changed.append(
                f"steps per epoch (was {found.state['steps_per_epoch']}, now {self.job.steps_per_epoch}: another "
                "table?)"
            )
        if changed:
            raise UsageError(
                f"cannot resume {self.folder}: {', '.join(changed)} changed. Use the same options, or start a new run."
            )
        return found

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        state = found.state
        self.step, self.epoch, self.rows, self.before = state["step"], state["epoch"], state["rows"], state["seconds"]
        self.sums, self.lr, self.score_seconds = state["sums"], state["lr"], state["score_seconds"]
        self.saved = (self.step, len(self.rows))
        self.best_epoch, self.best_score = (
            state["best_epoch"],
            -math.inf if state["best_score"] is None else state["best_score"],
        )
        self.best = found.tensors["best"]
        optim.load_flat(self.optimizer, found.tensors["optimizer"])
        if self.average:
            average = found.tensors["average"]
            self.average = [
                optim.placed_like(average[n], p.detach()) for n, p in zip(self.names, self.params, strict=True)
            ]

    def _save(self) -> None:
        start = time.monotonic()
        self._read_all()
        tensors = dict(
            model=optim.whole_state(self.job.model.state_dict()),
            optimizer=optim.flat_state(self.optimizer),
            best=self.best,
        )
        tensors["average"] = optim.whole_state(dict(zip(self.names, self.average)))
        tensors["state"] = self.job.state.state_dict() if self.job.state is not None else {}
        state = dict(
            step=self.step, epoch=self.epoch, seconds=self.elapsed(), rows=self.rows, sums=self.sums, lr=self.lr
        )
        state |= dict(score_seconds=self.score_seconds, best_epoch=self.best_epoch, best_score=self.best_score)
        state |= dict(plan=asdict(self.plan), steps_per_epoch=self.job.steps_per_epoch)
        if self.team.main:
            checkpoint.save(self.folder, tensors, plain(state))
        self.saved, self.saved_at = (self.step, len(self.rows)), time.monotonic()
        self.save_cost = self.saved_at - start

    def _write_metrics(self) -> None:
        """The rows of this run and no other, as one file."""
        write_whole(
            self.folder / METRICS, lambda part: part.write_text("".join(line(r) for r in self.rows), encoding="utf-8")
        )
