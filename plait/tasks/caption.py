"""What is to be said of it? A text per row, written by a generator, word by word."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.data.arrow import as_text
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.data.kinds.text import tokenizer_of
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError
from plait.evaluate import captions
from plait.evaluate.intervals import Score
from plait.parts.generation import beam, generate
from plait.tasks.base import MISSING, BadTargets, Objective, Pace, Task, TaskModel, TextOptions
from plait.tasks.bind import Bound

ROLES = ("generator",)

ANSWERS = np.dtype([("text", object), ("probability", np.float64), ("loss", np.float64)])
SMOOTH = 0.1  # of the labels, as in GIT (arXiv:2205.14100)
PENALTY = 0.6  # of the length, by which beams compare


class Captioner(TaskModel):
    """Texts, and the cross-entropy of every next token.

    most: how many tokens it writes at most, with the end. beam: how many beginnings of a text are followed at once, 0
    for the likeliest token each time.
    """

    def __init__(self, bound: Bound, most: int, beam: int = 0):
        super().__init__(bound)
        self.most, self.beam = most, beam

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

    def answer(self, batch: dict) -> Tensor:
        """(B, 2 + most): what the true text costs (NaN where the batch holds none), the log-probability of what is
        written, its tokens.

        Both are NaN in rows with nothing to write about, which `finish` answers.
        """
        ready, there = self.read(batch)
        system = self.bound.system
        if self.beam:
            written = beam(system, ready, most=self.most, size=self.beam, penalty=PENALTY)
            score = written.score * written.keep.sum(1) ** PENALTY  # the log-probability again
        else:
            written = generate(system, ready, most=self.most)
            score = written.score
        tokens = F.pad(written.tokens, (0, self.most - written.tokens.shape[1])).float()
        loss = torch.full_like(score, torch.nan)
        if "target" in batch:
            logits, true = self.next(ready, batch["target"])
            cost = (
                F.cross_entropy(logits.flatten(0, 1), true.flatten(), ignore_index=-100, reduction="none")
                .view_as(true)
                .sum(1)
            )
            loss = torch.where((true >= 0).any(1), cost, loss)
        told = torch.stack([loss, score], 1).masked_fill(~there[:, None], torch.nan)
        return torch.cat([told, tokens], 1)

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        ready, there = self.read(batch)
        logits, true = self.next(ready, batch["target"].masked_fill(~there[:, None], -100))
        loss = F.cross_entropy(
            logits.flatten(0, 1), true.flatten(), ignore_index=-100, label_smoothing=SMOOTH, reduction="sum"
        )
        return {"loss": loss / (true >= 0).sum().clamp(min=1)}


class Caption(Task):
    """A text per row. text: what the tokenizer learnt (as `TextKind.fit`). common: the commonest text of the training
    rows, its share.

    truth (n, U): token ids with beginning and end, -100 after the end and in rows without a text. Texts are compared as
    the tokenizer gives
    them back: the learnt one knows no capitals.
    """

    name = choice = "caption"
    noun = "captions"
    roles = ROLES
    dtype = np.int64
    of_text = True
    auto = "git"
    beams = True

    def __init__(self, target: str, text: dict, common: tuple[str, float]):
        self.target, self.text, self.common = target, text, tuple(common)

    @classmethod
    def learn(cls, table: Table, schema: Schema, rows: np.ndarray, options: TextOptions) -> Caption:
        """The tokens of the training rows' texts, or a published tokenizer's."""
        length, _, tokenizer = options
        (target,) = schema.targets
        if [s.kind for s in schema.slots] != ["image"]:
            found = ", ".join(f"{c} ({s.kind})" for s in schema.slots for c in s.columns)
            raise DataError(f"captioning reads one column of pictures, got {found}: choose it with --inputs NAME")
        texts = [t for t in _texts(table, target, rows) if t]
        if len(set(texts)) < 2:
            only = f"only {texts[0]!r}" if texts else "no text at all"
            raise DataError(f"the target {target!r} has {only} in the training rows: there is nothing to learn")
        column = pa.chunked_array([pa.array(texts, pa.string())])
        text = KINDS["text"].fit(column, FitOptions(Place(), max_tokens=length, tokenizer_file=tokenizer))
        if text["cls"] is None or text["sep"] is None:
            raise DataError(
                f"the tokenizer {tokenizer} has no token for the {'end' if text['cls'] is not None else 'beginning'} of a text"
            )
        longest = (
            max(len(e.ids) for e in tokenizer_of(text["tokenizer"]).encode_batch_fast(texts, add_special_tokens=False))
            + 2
        )
        task = cls(target, text | {"max_tokens": min(longest, length)}, ("", 0.0))
        usual, count = min(Counter(map(task.plain, texts)).items(), key=lambda item: (-item[1], item[0]))
        task.common = usual, count / len(texts)
        return task

    def pace(self, rows: int, system: nn.Module, own: bool) -> Pace:
        return super().pace(rows, system, True)

    @property
    def needs(self) -> dict[str, dict[str, int]]:
        """What a generator must know of the tokens."""
        return {"words": {"vocab": self.text["vocab"], "begin": self.text["cls"], "end": self.text["sep"]}}

    def plain(self, text: str) -> str:
        """A text as the tokenizer gives it back."""
        tokenizer = tokenizer_of(self.text["tokenizer"])
        return self.decode(tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return tokenizer_of(self.text["tokenizer"]).decode(ids, skip_special_tokens=True).strip()

    def encode(self, table: Table, schema: Schema) -> tuple[np.ndarray, BadTargets]:
        most, bad = self.text["max_tokens"], []
        truth = np.full((len(table), most), -100, np.int64)
        texts = _texts(table, self.target)
        found = tokenizer_of(self.text["tokenizer"]).encode_batch_fast(texts, add_special_tokens=False)
        for i, (text, ids) in enumerate(zip(texts, (e.ids for e in found))):
            if not ids:
                bad.append((i, MISSING if table.column(self.target)[i].as_py() is None else "empty text", ""))
                continue
            if len(ids) > most - 2:
                bad.append((i, f"more than {most} tokens, cut there", text))
            row = [self.text["cls"], *ids[: most - 2], self.text["sep"]]
            truth[i, : len(row)] = row
        return truth, bad

    def model(self, bound: Bound, objective: Objective | None = None) -> Captioner:
        return Captioner(bound, self.text["max_tokens"] - 1)

    def finish(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs (n, 2 + most) -> (n,) of text, probability and loss; a row with nothing to write about gets the
        commonest text."""
        out = np.empty(len(outputs), ANSWERS)
        for i, (loss, score, *ids) in enumerate(outputs.tolist()):
            told = self.common if np.isnan(score) else (self.decode([int(t) for t in ids]), float(np.exp(score)))
            out[i] = (*told, loss)
        return out

    def _written(self, truth: np.ndarray) -> list[str]:
        return [self.decode(row[row >= 0].tolist()) for row in truth]

    def scores(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        tokens = (truth[:, 1:] >= 0).sum(1)
        return captions.captions(self._written(truth), answers["text"].tolist(), answers["loss"], tokens)

    def guide(self, truth: np.ndarray, answers: np.ndarray) -> float:
        """What early stopping looks at: chrF, and a little what the true texts cost."""
        found = {s.name: s.value for s in self.scores(truth, answers)}
        return found["chrF"] - 0.02 * float(np.log(found.get("perplexity", 1.0)))

    def baseline(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        usual = np.empty(len(truth), ANSWERS)
        usual[:] = (*self.common, np.nan)
        return self.scores(truth, usual)

    def per_row(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Each row's own chrF."""
        return captions.chrf_rows(self._written(truth), answers["text"].tolist())

    def columns(self, answers: np.ndarray) -> dict[str, list]:
        return {self.target: answers["text"].tolist(), "probability": answers["probability"]}

    def describe(self) -> str:
        kind = f"texts of at most {self.text['max_tokens']} of {self.text['vocab']:,} tokens"
        return f"{kind}, commonest {self.common[0][:40]!r} {self.common[1]:.0%}"

    def to_json(self) -> dict:
        return {"task": self.name, "target": self.target, "text": self.text, "common": list(self.common)}

    @classmethod
    def from_json(cls, state: dict) -> Caption:
        return cls(state["target"], state["text"], tuple(state["common"]))


def _texts(table: Table, target: str, rows: np.ndarray | None = None) -> list[str]:
    """Texts of the target, "" where there is none or nothing but space."""
    cells = table.column(target).to_pylist()
    return ["" if c is None else as_text(c).strip() for c in (cells if rows is None else (cells[i] for i in rows))]


TASKS = (Caption,)
