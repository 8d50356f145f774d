"""Is this pair true? A probability per row."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from plait.core.roles import Embedder
from plait.data.digest import cell_digests
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError, UsageError
from plait.evaluate import metrics, pictures
from plait.evaluate.intervals import Score
from plait.evaluate.report import Section
from plait.parts.heads.parts import Features
from plait.parts.objectives.cached import cached
from plait.parts.objectives.contrastive import contrastive, same_content
from plait.parts.objectives.late import late
from plait.tasks.base import Answers, Objective, beside
from plait.tasks.bind import Bound
from plait.tasks.details import of_classes
from plait.tasks.known import known_rows, mean_over
from plait.tasks.labels import binary_cross_entropy
from plait.tasks.rowwise import Answer, AnswerTask, Loss

ROLES = ("fuser", "embedder")

MATCH = "match"  # the target's name where the table holds only true pairs


class Match(AnswerTask):
    """True or not, per row. rate: the share of true pairs in the training rows. Answers are its `probability` (n,)."""

    name = choice = "match"
    noun = "matching"
    roles = ROLES
    target: str
    needs_target = False
    on_towers = False
    asks = "boolean"

    def __init__(self, target: str, rate: float):
        self.target, self.rate = target, rate

    @classmethod
    def extend(
        cls, table: Table, schema: Schema, splits: dict[str, np.ndarray], seed: int
    ) -> tuple[Table, dict[str, np.ndarray]]:
        """Where all pairs are true, as many false ones are drawn; the same again for a schema that was made of them."""
        if schema.targets and (schema.targets != [MATCH] or MATCH in table.names):
            return table, splits
        table, splits = with_mismatches(table, schema, splits, seed)
        if schema.targets:
            return table, splits
        schema.columns = [*schema.columns, *Schema.guess(table, inputs=schema.inputs, target=MATCH).used("target")]
        return table, splits

    @classmethod
    def learn(cls, schema: Schema) -> Match:
        (target,) = schema.targets
        no, yes = schema.column(target).params["counts"]
        if not no or not yes:
            raise DataError(
                f"the target {target!r} needs true and false pairs in the training rows: "
                f"got {no + yes} rows of one sort"
            )
        return cls(target, yes / (no + yes))

    def model(self, bound: Bound, objective: Objective | None = None) -> Answer:
        prior = torch.tensor([np.log(self.rate / (1 - self.rate))])
        system = bound.system
        model = Agreement if isinstance(system, Embedder) and system.logit_scale is not None else Answer
        return model(bound, [self.target], prior, _loss, drop=0.0)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        return {"probability": 1 / (1 + np.exp(-np.clip(outputs["outputs"][:, 0], -60, 60)))}

    def _both(self, truth: Answers, answers: Answers) -> tuple[np.ndarray, np.ndarray]:
        return truth[self.target], answers["probability"]

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return metrics.matching(*self._both(truth, answers))

    def guide(self, truth: Answers, answers: Answers) -> float:
        return self.scores(truth, answers)[0].value

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, {"probability": np.full(len(truth[self.target]), self.rate)})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        return metrics.matched_rows(*self._both(truth, answers))

    def loss_rows(self, truth: Answers, answers: Answers) -> np.ndarray:
        real, p = self._both(truth, answers)
        return -np.log(np.where(real == 1, p, 1 - p).clip(1e-7, 1))[real != -100]

    def details(self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers) -> list[Section]:
        real, p = self._both(truth, answers)
        both = np.stack([1 - p, p], 1)
        counts = [int((real == k).sum()) for k in (0, 1)]
        told = of_classes(real, both, ["false", "true"], counts, both.argmax(1))[
            1:
        ]  # how many were learnt from is not kept
        return told + super().details(rows, index, truth, answers)

    def columns(self, answers: Answers) -> dict[str, Any]:
        p = answers["probability"]
        return beside({self.target: p >= 0.5}, {"probability": p})

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, bytes] | None:
        real, p = self._both(truth, answers)
        if not (real == 1).any():
            return None
        return "Precision and recall", pictures.precision_recall([("match", real, p)])

    def describe(self) -> str:
        return f"{self.rate:.0%} of the pairs are true"

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Match:
        return cls.learn(schema)


class Agreement(Answer):
    """A pair is true as far as its sides' vectors agree, and what the fusion adds to that: outputs (B, 1).

    Told apart by the binary loss alone, two towers from scratch stay at chance for long: nothing says which of their
    features are the same thing. The contrastive loss on the true pairs of a batch says it from the first step;
    alignment comes before fusion (arXiv:2107.07651).
    The vector of the last slot, whose cells are exchanged in false pairs, is compared with every other slot's.
    """

    SPEED = 30.0  # the offset has far to go: minus the log of how many rows a true pair must stand out of

    def __init__(self, bound: Bound, names: list[str], prior: Tensor, loss: Loss, *, drop: float):
        super().__init__(bound, names, prior, loss, drop=drop)
        self.whole = ""
        *self.others, self.last = bound.takes
        self.gain = nn.Parameter(torch.ones(len(self.others)))
        self.offset = nn.Parameter(torch.zeros(len(self.others)))

    @property
    def embedder(self) -> Embedder:
        return cast(Embedder, self.bound.system)

    def features(self, batch: dict) -> tuple[Features, dict[str, Tensor]]:
        """As bound, and the sides' vectors, which a fuser that is an embedder too may give apart."""
        f = self.bound.features(batch)
        return f, self.embedder.embed(self.bound.prepared(batch)) if f.vectors is None else f.vectors

    def agreement(self, f: Features, vectors: dict[str, Tensor]) -> Tensor:
        """(B, 1): log-odds by the vectors; 0 where one side is absent."""
        last, compare = vectors[self.last].float(), late(self.embedder)
        cosine = torch.stack([compare.rows(vectors[s].float(), last) for s in self.others], 1)  # (B, S - 1)
        both = torch.stack([f.present[s] & f.present[self.last] for s in self.others], 1)
        odds = self.gain * self.scale().exp() * cosine + self.SPEED * self.offset
        return odds.masked_fill(~both, 0.0).sum(1, keepdim=True)

    def scale(self) -> Tensor:
        return self.embedder.logit_scale.float().clamp(max=math.log(100))

    def answer(self, batch: dict) -> dict[str, Tensor]:
        f, vectors = self.features(batch)
        return {"outputs": self.head(f)[0].float() + self.agreement(f, vectors)}

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        more: dict[str, Tensor] = {}  # losses of the system's layers

        def read(some: dict) -> dict[str, Tensor]:
            f, vectors = self.features(some)
            if f.losses and self.micro_batch is not None:
                raise UsageError(
                    f"micro_batch: the system has losses of its own over a batch, {', '.join(f.losses)}, which its "
                    "pieces do not add up to: leave micro_batch out"
                )
            more.update(f.losses or {})
            outputs = self.head(f)[0].float() + self.agreement(f, vectors)
            both = {f"both {s}": f.present[s] & f.present[self.last] for s in self.others}
            return {"outputs": outputs, "anything": f.anything()} | both | vectors

        found, target = cached(read, batch, self.micro_batch, self), self.target(batch)
        known = known_rows(target) & found["anything"]
        losses = {"loss": mean_over(self.loss(found["outputs"], target), known)}
        for s in self.others:
            true = (target == 1) & found[f"both {s}"]
            same = same_content(batch[s]) | same_content(batch[self.last])
            scale, compare = self.embedder.logit_scale, late(self.embedder)
            drawn = contrastive(found[s], found[self.last], scale, same, true, compare)
            losses[f"contrastive_{s}"] = drawn["contrastive"] / len(self.others)
        return losses | more


def _loss(outputs: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy(outputs, target[:, None])


def with_mismatches(
    table: Table, schema: Schema, splits: dict[str, np.ndarray], seed: int
) -> tuple[Table, dict[str, np.ndarray]]:
    """True pairs and as many false ones: a table of twice the rows with a `match` column, and its splits.

    A false row has the columns of the last slot from another row of the same split, chosen at random, never with the
    same content.
    """
    if len(schema.slots) < 2:
        raise DataError("matching needs at least two inputs that can be paired: choose them with --inputs")
    moved = schema.slots[-1].columns
    other, rng = np.arange(len(table)), np.random.default_rng(seed)
    content = np.stack([cell_digests(table, schema, name) for name in moved], 1)
    real = np.zeros(len(table), bool)
    for rows in splits.values():
        other[rows] = rng.permutation(rows)
        for _ in range(20):  # redraw what fell on its own content
            clash = rows[(content[rows] == content[other[rows]]).all(1)]
            if not len(clash):
                break
            other[clash] = rng.choice(rows, len(clash))
        real[rows] = (content[rows] != content[other[rows]]).any(1)
    false = table.data
    for name in moved:
        false = false.set_column(false.column_names.index(name), name, table.column(name).take(pa.array(other)))
    both = pa.concat_tables([table.data, false.filter(pa.array(real))])
    place = np.cumsum(real) - 1 + len(table)
    doubled = {name: np.concatenate([rows, place[rows[real[rows]]]]) for name, rows in splits.items()}
    truth = np.concatenate([np.ones(len(table), bool), np.zeros(int(real.sum()), bool)])
    return Table(both, table.root, table.source).with_column(MATCH, truth), doubled


TASKS = (Match,)
