"""Tasks that answer each row with a few numbers: a bound system, a sum-of-parts head, a loss on the whole and on each
part, and a linear model beneath."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import UsageError
from plait.evaluate.chosen import named, score
from plait.evaluate.intervals import Score
from plait.evaluate.report import Section
from plait.parts.heads.parts import SumOfParts
from plait.tasks.base import WEIGHT, Answers, Task, TaskModel
from plait.tasks.beneath import Ladder, Several
from plait.tasks.beneath.several import Asks
from plait.tasks.bind import Bound, drop_modalities
from plait.tasks.details import slices_of, worse
from plait.tasks.known import known_rows, mean_over
from plait.tasks.linear import solve_straight

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (B, K), targets -> (B,) loss per row


def merge(parts: list[Answers]) -> Answers:
    """Dicts of arrays and lists, a row each, end to end."""
    found: Answers = {}
    for name in parts[0] if parts else ():
        pieces = [part[name] for part in parts]
        found[name] = list(chain(*pieces)) if isinstance(pieces[0], list) else np.concatenate(pieces)
    return found


class Answer(TaskModel):
    """Outputs (B, K) of a sum-of-parts head. names: of the targets; several stand side by side.

    drop: in this share of training rows modalities are taken away at random, so that any subset can answer later; from
    the fusion alone where each modality also answers for itself, with a loss of its own.
    """

    head: SumOfParts
    ladder: Ladder | Several | None = None  # of simple models, whose answers are mixed with the network's

    def __init__(
        self, bound: Bound, names: list[str], prior: Tensor, loss: Loss, *, drop: float = 0.3,
        layer: Callable[[int, int], nn.Module] = nn.Linear,
    ):  # fmt: skip
        super().__init__(bound)
        self.names, self.loss, self.drop = names, loss, drop
        self.head = SumOfParts(bound.width, bound.part_widths, bound.raw_widths, prior, layer)

        self.twins = nn.ModuleList()  # of other seeds, which answer with this one
        self.pool: Callable[[Tensor], Tensor] | None = None

    def join(self, twins: Iterable[Answer], pool: Callable[[Tensor], Tensor]) -> None:
        """Answer by what `pool` makes of the outputs (M, B, K) of this network and of others."""
        self.twins, self.pool = nn.ModuleList(twins), pool

    @property
    def nothing(self) -> Tensor:
        """The outputs (K,) of a row of which nothing is known."""
        return self.head.prior

    def target(self, batch: dict) -> Tensor:
        """(B,) or (B, K): what is asked."""
        parts = [batch["target"][name] for name in self.names]
        return parts[0] if len(parts) == 1 else torch.stack(parts, 1)

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`outputs` (B, K): logits, or standardised numbers."""
        if self.ladder is None:
            return self.watched(batch)
        beneath, device = self.ladder(batch), self.head.prior.device
        network = self.watched(batch)["outputs"].cpu().numpy() if self.ladder.heard else None
        found = torch.from_numpy(self.ladder.whole(beneath, network)).float().to(device)
        anything = torch.stack([p.to(device) for p in batch["present"].values()]).any(0)[:, None]
        return {"outputs": torch.where(anything, found, self.nothing)}

    def watched(self, batch: dict) -> dict[str, Tensor]:
        """`outputs` (B, K) of the network, or of all that answer together, without simple models."""
        own = self.alone(batch)
        if self.pool is None:
            return {"outputs": own}
        return {"outputs": self.pool(torch.stack([own, *(cast(Answer, one).alone(batch) for one in self.twins)]))}

    def alone(self, batch: dict) -> Tensor:
        """(B, K) of this network."""
        return self.head(self.bound.features(batch))[0].float()

    def straight(self, batch: dict) -> dict[str, Tensor]:
        """`outputs` (B, K) of the head's linear layers alone, float32."""
        ready = self.bound.prepared(batch)
        raw = self.bound.raw(ready)
        with torch.autocast(self.head.prior.device.type, enabled=False):
            return {"outputs": self.head.straight(raw, ready["present"])}

    def before_training(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        """The linear layers are solved."""
        solve_straight(self, rows, index, seed)

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        if len(self.bound.takes) > 1:
            left = drop_modalities(batch["present"], self.drop, generator)
            batch = {**batch, "visible" if self.bound.part_widths else "present": left}
        f = self.bound.features(batch)
        total, own = self.head(f)
        target, weight = self.target(batch), batch.get("weight")
        known = known_rows(target)
        losses = {"loss": mean_over(self.loss(total.float(), target), known & f.anything(), weight)}
        if len(own) > 1:
            loss = {s: self.loss(o.float(), target) for s, o in own.items()}
            parts = [mean_over(value, known & f.present[s], weight) for s, value in loss.items()]
            losses["parts"] = torch.stack(parts).sum()
        return losses | (f.losses or {})


class AnswerTask(Task):
    """A task whose model is an `Answer`."""

    on_towers = True
    figure: ClassVar[str] = "accuracy"  # what `per_row` is called
    costs: ClassVar[str] = "log loss"  # what `cost` is called
    one_of: ClassVar[bool] = False  # its `probabilities` sum to 1
    pools: ClassVar[bool] = False  # several models may answer it together
    faultless: ClassVar[float | None] = None  # the guide of answers that are all right and sure, without a metric

    def pooled(self, outputs: Tensor) -> Tensor:
        """(B, K): what the outputs (M, B, K) of several models say together: of numbers the mean."""
        return outputs.mean(0)

    def recast(
        self, other: Task, truth: Answers, answers: Answers, rows: Rows, index: np.ndarray
    ) -> tuple[Answers, Answers]:
        """The truth is read anew, and what was never learnt has a probability of 0."""
        parts = [self.record(rows.batch(index[at : at + 64]), {})[0] for at in range(0, len(index), 64)]
        mine, theirs = self.outcomes, cast(AnswerTask, other).outcomes
        if mine == theirs:
            return merge(parts), answers
        given, places = answers["probabilities"], {name: i for i, name in enumerate(theirs)}
        none = np.zeros(len(given))
        p = np.stack([given[:, places[name]] if name in places else none for name in mine], 1)
        return merge(parts), answers | {"probabilities": p / p.sum(1, keepdims=True) if self.one_of else p}

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        return worse(slices_of(rows, index), self.per_row(truth, answers), self.figure, "higher")

    def cost(self, truth: Answers, answers: Answers) -> np.ndarray:
        """(n,): what is told to rise where a column says nothing."""
        return self.loss_rows(truth, answers)

    @property
    def outcomes(self) -> list:
        """What each of its `probabilities` is of; empty where it has none."""
        return []

    def simple(self) -> Asks:
        """What is asked as simple models see it, and the mean and spread by which it was standardised; of several
        numbers, each."""
        raise NotImplementedError

    def judge(self, metric: str | None, positive: str | None, rows: Rows, watch: np.ndarray) -> None:
        if not self.metrics:
            return super().judge(metric, positive, rows, watch)
        if positive is not None:
            self._look_for(positive)
        if metric is None:
            return
        self.metric = named(metric, self.metrics, self.noun)
        truth = {name: t.numpy() for name, t in rows.target(watch).items()}
        if not np.isfinite(self._metric_value(truth, self._any_answers(truth))):
            title = self.metrics[self.metric].title
            raise UsageError(
                f"metric: {title} is not defined on the {len(watch):,} rows that watch the training, which are too "
                "much alike: give more of them, or choose another metric"
            )

    def _look_for(self, positive: str) -> None:
        raise UsageError(f"positive is for a target of two classes: this run does {self.name}")

    def _parts(self, truth: Answers, answers: Answers) -> tuple[tuple, dict[str, Any]]:
        """What statistics of this task are asked with."""
        raise NotImplementedError

    def _any_answers(self, truth: Answers) -> Answers:
        """Some answers that differ from row to row."""
        raise NotImplementedError

    def _metric_value(self, truth: Answers, answers: Answers) -> float:
        assert self.metric is not None
        parts, more = self._parts(truth, answers)
        w = truth.get(WEIGHT, np.ones(len(parts[0])))
        return self.metrics[self.metric].value(*parts, w=w, **more)

    def _metric_guide(self, truth: Answers, answers: Answers) -> float:
        """The chosen metric, higher for better."""
        value = self._metric_value(truth, answers)
        return value if self.metrics[self.metric or ""].better == "higher" else -value

    def _led(self, scores: list[Score], truth: Answers, answers: Answers) -> list[Score]:
        """The scores, the chosen one first."""
        if self.metric is None:
            return scores
        metric = self.metrics[self.metric]
        first = next((s for s in scores if s.name == metric.title), None)
        if first is None:
            parts, more = self._parts(truth, answers)
            first = score(metric, parts, truth.get(WEIGHT), **more)
        return scores if first is None else [first, *(s for s in scores if s.name != metric.title)]

    def settle(
        self,
        model: TaskModel,
        schema: Schema,
        found: Callable[[Callable[[TaskModel, dict], dict[str, Tensor]] | None], tuple[Answers, Answers]],
    ) -> str:
        """A plain table is left to the head's linear layers, unless what was trained beside them is better by two
        standard errors."""
        assert isinstance(model, Answer)
        plain = all(KINDS[s.kind].straight for s in schema.slots)
        if not plain or not model.head.linear:
            return ""
        gain = self.loss_rows(*found(lambda _, batch: model.straight(batch))) - self.loss_rows(*found(None))
        if gain.mean() >= 2 * gain.std() / max(len(gain) - 1, 1) ** 0.5:
            return ""
        with torch.no_grad():
            for one in (model, *model.twins):
                cast(Answer, one).head.quiet()
        model.silent = True
        return "the linear part alone is as good on the validation rows: it answers"
