"""What is to be said of it? A text per row, written by a generator, word by word."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from plait.core.roles import Model
from plait.data.kinds import KINDS
from plait.data.kinds.spelling import UNKNOWN
from plait.data.kinds.text import CUT, TextKind
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError
from plait.evaluate import captions
from plait.evaluate.intervals import Score
from plait.parts.generation import beam, generate, rank
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel, beside
from plait.tasks.bind import Bound, GeneratorBound

ROLES = ("generator",)
TAKES = (("image", "audio"),)

SMOOTH = 0.1  # of the labels, as in GIT (arXiv:2205.14100)
PENALTY = 0.6  # of the length, by which beams compare


class Captioner(TaskModel):
    """Texts, and the cross-entropy of every next token.

    name: of the target. most: how many tokens it writes at most, with the end. beam: how many beginnings of a text are
    followed at once, 0 for the likeliest token each time. closed: texts (A, N) with their ends, and which of their
    tokens are real (A, N): the likeliest of these is written, and nothing else.
    """

    bound: GeneratorBound
    closed: tuple[Tensor, Tensor] | None = None

    def __init__(self, bound: Bound, name: str, most: int, beam: int = 0):
        super().__init__(bound)
        self.name, self.most, self.beam = name, most, beam

    def read(self, batch: dict) -> tuple[dict, Tensor]:
        """The batch as the system reads it, and (B,) bool: which rows have anything to write about."""
        ready = self.bound.prepared(batch)
        return ready, torch.stack(list(ready["present"].values())).any(0)

    def next(self, ready: dict, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, U - 1, V) of every token of `target` (B, U) after its first, and these tokens, -100 where there is
        none."""
        longest = int((target >= 0).sum(1).max().clamp(min=2))
        said = target[:, : longest - 1]
        logits, _ = self.bound.system.step(said.clamp(min=0), self.bound.system.prefill(ready), said >= 0)
        return logits.float(), target[:, 1:longest]

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`tokens` (B, U) of what is written, its log-probability `score` (B,), out of a closed list that among these;
        `loss` (B,): what the true text costs, NaN where the batch holds none; and `there` (B,) bool: whether there was
        anything to write about."""
        ready, there = self.read(batch)
        system = self.bound.system
        if self.closed is not None:
            texts, real = (t.to(there.device) for t in self.closed)
            found = rank(system, ready, texts, real)
            best, score = found.answers[:, 0], found.score[:, 0] - found.score.logsumexp(1)
            tokens = texts.masked_fill(~real, 0)[best, 1:]
        elif self.beam:
            written = beam(system, ready, most=self.most, size=self.beam, penalty=PENALTY)
            tokens, score = written.tokens, written.score * written.keep.sum(1) ** PENALTY  # the log-probability again
        else:
            written = generate(system, ready, most=self.most)
            tokens, score = written.tokens, written.score
        return {"tokens": tokens, "score": score, "loss": self.cost(ready, batch, there), "there": there}

    def cost(self, ready: dict, batch: dict, there: Tensor) -> Tensor:
        """(B,): what the true text costs, NaN where the batch holds none or nothing is `there` (B,) to read."""
        loss = torch.full(there.shape, torch.nan, device=there.device)
        if "target" not in batch:
            return loss
        logits, true = self.next(ready, batch["target"][self.name])
        cost = F.cross_entropy(logits.flatten(0, 1), true.flatten(), ignore_index=-100, reduction="none")
        return torch.where((true >= 0).any(1) & there, cost.view_as(true).sum(1), loss)

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        ready, there = self.read(batch)
        logits, true = self.next(ready, batch["target"][self.name].masked_fill(~there[:, None], -100))
        loss = F.cross_entropy(
            logits.flatten(0, 1), true.flatten(), ignore_index=-100, label_smoothing=SMOOTH, reduction="sum"
        )
        return {"loss": loss / (true >= 0).sum().clamp(min=1)}


class Caption(Task):
    """A text per row. text: what the kind `text` learnt of the target. Answers are a `text` each, its `probability`,
    the `loss` of the true one, and whether anything is `there` to read.

    Texts are compared as the tokenizer gives them back: the learnt one knows no capitals.
    """

    name = choice = "caption"
    noun = "captions"
    roles: ClassVar[tuple[str, ...]] = ROLES
    target: str
    asks = "text"
    auto = "git"
    beams = True
    wants: ClassVar[str] = "captioning reads one column of pictures or of sounds"

    def __init__(self, target: str, text: dict):
        self.target, self.text = target, text
        self.rest: dict[int, list[int]] = {}  # by row: of a true text that is longer than any is written, what is cut

    @classmethod
    def reads(cls, kinds: list[str]) -> bool:
        """Whether these kinds of inputs are what it writes about."""
        return kinds in (["image"], ["audio"])

    @classmethod
    def learn(cls, schema: Schema) -> Caption:
        (target,) = schema.targets
        if (kinds := [s.kind for s in schema.slots]) and not cls.reads(kinds):
            found = ", ".join(f"{c} ({s.kind})" for s in schema.slots for c in s.columns)
            raise DataError(f"{cls.wants}, got {found}: choose it with --inputs NAME")
        text = schema.column(target).params
        if text["different"] < 2:
            only = f"only {text['usual']!r}" if text["different"] else "no text at all"
            raise DataError(f"the target {target!r} has {only} in the training rows: there is nothing to learn")
        if text["cls"] is None or text["sep"] is None:
            which = "end" if text["cls"] is not None else "beginning"
            raise DataError(f"the tokenizer has no token for the {which} of a text: give another with --tokenizer FILE")
        return cls(target, text)

    def derive(self, rows: Rows) -> None:
        """Truth is compared whole, however much of it can be learnt from."""
        kind = cast(TextKind, KINDS[self.asks])
        cut = [row for (row, name), cell in rows.bad.cells.items() if name == self.target and cell[1] == CUT]
        cells = rows.table.column(self.target).take(pa.array(cut, pa.int64())).to_pylist() if cut else []
        self.rest = {row: kind.beyond(cell, self.text) for row, cell in zip(cut, cells)}

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        return super().pace(rows, system, True)

    @property
    def needs(self) -> dict[str, dict[str, int]]:
        """What a generator must know of the tokens."""
        return {"words": {"vocab": self.text["vocab"], "begin": self.text["cls"], "end": self.text["sep"]}}

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids (U,), which end at the first that is negative."""
        return KINDS[self.asks].write(ids[ids >= 0], self.text)

    def true(self, ids: np.ndarray, row: int) -> str:
        """A true text, with what had no room, and a sign for each token that cannot be written."""
        whole = np.concatenate([ids[ids >= 0], np.asarray(self.rest.get(row, []), ids.dtype)])
        parts = np.split(whole, np.flatnonzero(whole == self.text["unk"])) if self.text["unk"] is not None else [whole]
        return f" {UNKNOWN} ".join(self.decode(part) for part in parts).strip()

    def model(self, bound: Bound, objective: Objective | None = None) -> Captioner:
        return Captioner(bound, self.target, self.text["max_tokens"] - 1)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        """A row with nothing to write about gets the commonest text."""
        there, said = outputs["there"], [self.decode(row) for row in outputs["tokens"]]
        return {
            "text": [text if real else self.text["usual"] for text, real in zip(said, there)],
            "probability": np.where(there, np.exp(outputs["score"].astype(np.float64)), self.text["share"]),
            "loss": outputs["loss"].astype(np.float64),
            "there": there,
        }

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        """Of the truth the `text`, and how many `tokens` it has after the first."""
        ids = batch["target"][self.target].numpy()
        text = [self.true(own, int(row)) for own, row in zip(ids, batch["row"])]
        return {"text": text, "tokens": (ids[:, 1:] >= 0).sum(1)}, answers

    def aside(
        self, rows: Rows, index: np.ndarray, truth: Answers, answers: Answers, queries: np.ndarray | None = None
    ) -> dict[str, int]:
        nothing = int((~answers["there"]).sum())
        return {"row with nothing to read, in perplexity alone": nothing} if nothing else {}

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return captions.captions(truth["text"], answers["text"], answers["loss"], truth["tokens"], answers["there"])

    def guide(self, truth: Answers, answers: Answers) -> float:
        """What early stopping looks at: chrF, and a little what the true texts cost."""
        found = {s.name: s.value for s in self.scores(truth, answers)}
        return found["chrF"] - 0.02 * float(np.log(found.get("perplexity", 1.0)))

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        n = len(truth["text"])
        return self.scores(truth, {"text": [self.text["usual"]] * n, "loss": None, "there": None})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """Each row's own chrF."""
        return captions.chrf_rows(truth["text"], answers["text"])

    def columns(self, answers: Answers) -> dict[str, Any]:
        return beside({self.target: answers["text"]}, {"probability": answers["probability"]})

    def describe(self) -> str:
        kind = f"texts of at most {self.text['max_tokens']} of {self.text['vocab']:,} tokens"
        return f"{kind}, commonest {self.text['usual'][:40]!r} {self.text['share']:.0%}"

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Caption:
        (target,) = schema.targets
        return cls(target, schema.column(target).params)


TASKS = (Caption,)
