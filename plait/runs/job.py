"""A prepared table and a model as what the training loop runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import numpy as np
import torch
from torch import nn

from plait.core.methods import Change, after_steps
from plait.data.augment import augment
from plait.runs.beneath import Beneath, watch
from plait.runs.predict import answered, outputs, watched
from plait.runs.prepare import Prepared
from plait.tasks.base import TaskModel


class TableJob:
    """Batches of the training rows, in an order drawn from (seed, epoch); the score is the task's guide on the
    validation rows."""

    def __init__(
        self,
        model: TaskModel,
        data: Prepared,
        *,
        batch_size: int,
        seed: int,
        strength: float,
        precision: str = "fp32",
        changes: Iterable[Change] = (),
    ):
        self.model, self.data, self.task = model, data, data.task
        self.batch_size, self.seed, self.strength, self.precision = batch_size, seed, strength, precision
        self.changes = list(changes)
        self.state, self._after = model.state, after_steps(self.changes)
        self.index = data.splits["train"]
        self.watch = data.splits["val"] if len(data.splits["val"]) else self.index
        self.steps_per_epoch = -(-len(self.index) // batch_size)
        self.coming: Callable[[], None] | None = None  # waits for simple models that are learnt beside the training
        self._beneath: Beneath | None = None
        self.share: TableJob | None = None  # whose simple models answer beneath this network, too
        self.seconds: defaultdict[str, float] = defaultdict(float)  # where the time of a run went

    def again(self, model: TaskModel, batch_size: int) -> TableJob:
        """The same with another model, and other batches."""
        how = {"seed": self.seed, "strength": self.strength, "precision": self.precision, "changes": self.changes}
        return TableJob(model, self.data, batch_size=batch_size, **how)  # type: ignore[arg-type]

    def batches(self, epoch: int, start: int) -> Iterator[dict]:
        """The epoch's batches from number `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.index)
        for step in range(start, self.steps_per_epoch):
            begun = time.perf_counter()
            batch = self.batch(order[step * self.batch_size : (step + 1) * self.batch_size])
            decoded = time.perf_counter()
            if self.strength > 0:
                generator = torch.Generator().manual_seed(hash_seed(self.seed, epoch, step))
                batch = augment(batch, self.data.schema, generator, strength=self.strength, whole=self.task.whole)
            self.seconds["reading rows"] += decoded - begun
            self.seconds["augmentation"] += time.perf_counter() - decoded
            yield batch

    def batch(self, index: np.ndarray) -> dict:
        """Rows with their targets."""
        return self.data.rows.batch(index)

    def after_step(self) -> None:
        self.model.after_step()
        for advance in self._after:
            advance(cast(nn.Module, self.model.bound.system))

    def laddered(self) -> None:
        """Wait for the simple models beneath, if they are still being learnt."""
        if self.coming is not None:
            self.coming()
            self.coming = None

    def watched_beneath(self) -> Beneath | None:
        """What simple models answer for the rows that watch, read once; None of a model without them."""
        if self.share is not None:
            return self.share.watched_beneath()
        self.laddered()
        if self._beneath is None:
            self._beneath = watch(self.model, self.task, self.data.rows, self.watch)
        return self._beneath

    def score(self, model: nn.Module) -> tuple[float, dict]:
        """The guide on the validation rows, and the main score for the curves."""
        begun = time.perf_counter()
        how = dict(precision=self.precision, call=watched, strict=False)
        model, rows = cast(TaskModel, model), self.data.rows
        if beneath := self.watched_beneath():
            network = outputs(model, rows, self.watch, **how)["outputs"]
            guide = beneath.guide(network)
            notes = {"guide": guide} | beneath.alone(network)
        else:
            guide = self.task.guide(*answered(self.task, model, rows, self.watch, **how))
            notes = {"guide": guide}
        self.seconds["validation"] += time.perf_counter() - begun
        return guide, notes


def hash_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
