"""What is said? A text per sound: spelled by a transcriber under CTC, or written word by word by a generator that
hears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from plait.core.roles import Model
from plait.core.roles import Transcriber as Role
from plait.data.kinds import KINDS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError
from plait.evaluate import transcripts
from plait.evaluate.intervals import Score
from plait.parts.objectives.ctc import ctc_rows, greedy, prefix_beam
from plait.tasks.base import Answers, Objective, Pace, Task, TaskModel, beside
from plait.tasks.bind import Bound, TranscriberBound
from plait.tasks.caption import Caption
from plait.tasks.known import mean_over

ROLES = ("transcriber", "generator")
TAKES = ("audio",)

SHOWN = 12  # transcripts in the picture
TOO_LONG = "text too long for its sound, not learnt from"


class Transcriber(TaskModel):
    """Labels, and the CTC loss.

    name: of the target. beam: prefixes kept a frame, 0 for the likeliest label of each frame.
    """

    bound: TranscriberBound

    def __init__(self, bound: Bound, name: str, beam: int = 0):
        super().__init__(bound)
        self.name, self.beam = name, beam

    def logits(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, V) logits, (B,) lengths, (B,) bool whether there is a sound."""
        ready = self.bound.prepared(batch)
        (slot,) = self.bound.takes
        logits, lengths = self.bound.system.transcribe(ready[slot], ready["keep"].get(slot))
        return logits, lengths, ready["present"][slot]

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`labels` (B, U), 0 after the last, their log-probability `score` (B,), and `there` (B,) bool: whether there
        is a sound."""
        logits, lengths, present = self.logits(batch)
        labels, score = _beam(logits, lengths, self.beam) if self.beam else greedy(logits, lengths)
        return {"labels": labels, "score": score.float(), "there": present}

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        logits, lengths, present = self.logits(batch)
        loss, fits = ctc_rows(logits, lengths, batch["target"][self.name])
        return {"loss": mean_over(loss, fits & present)}


def _beam(logits: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    logp = logits.float().log_softmax(2).cpu().numpy()
    labels, scores = np.zeros(logp.shape[:2], np.int64), np.zeros(len(logp), np.float32)
    for i, (row, length) in enumerate(zip(logp, lengths.tolist())):
        found, scores[i] = prefix_beam(row[:length], width)
        labels[i, : len(found)] = found
    return torch.from_numpy(labels).to(logits.device), torch.from_numpy(scores).to(logits.device)


class Transcripts(Task):
    """What transcripts are worth and how they are shown, whoever writes them. Answers have a `text` each."""

    choice = "transcribe"
    noun = "transcription"
    roles: ClassVar[tuple[str, ...]] = ROLES
    auto = "zipformer"
    longest = 1.0  # a sound that is cut no longer says what its text says
    whole = True
    beams = True
    text: dict

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return transcripts.transcription(truth["text"], answers["text"])

    def guide(self, truth: Answers, answers: Answers) -> float:
        """What early stopping looks at: the error rates of words and, a little, of characters."""
        both = truth["text"], answers["text"]
        words, letters = transcripts.word_rows(*both).sum(0), transcripts.character_rows(*both).sum(0)
        return -float(words[0] / words[1] + 0.1 * letters[0] / letters[1])

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, {"text": [self.text["usual"]] * len(truth["text"])})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """1 less the row's own word error rate."""
        words = transcripts.word_rows(truth["text"], answers["text"])
        return 1 - words[:, 0] / np.maximum(words[:, 1], 1)

    def picture(self, truth: Answers, answers: Answers) -> tuple[str, tuple[bytes, str]]:
        """Some rows, from the best to the worst, with each edit marked."""
        order = np.argsort(-self.per_row(truth, answers), kind="stable")
        order = order[np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int))]
        pairs = [(truth["text"][i], answers["text"][i]) for i in order]
        caption = "rows from the best to the worst; S another word, D a word left out, I one too many"
        return "Truth and answer", (transcripts.edited(pairs, SHOWN), caption)


class Transcribe(Transcripts):
    """A text per row. text: what the kind `spelling` learnt of the target. Answers are a `text` each, and its
    `probability`."""

    name = "transcribe"
    target: str
    asks = "spelling"

    @classmethod
    def by(cls, role: str | None) -> type[Task]:
        return TranscribeInWords if role == "generator" else cls

    def __init__(self, target: str, text: dict):
        self.target, self.text = target, text

    @classmethod
    def learn(cls, schema: Schema) -> Transcribe:
        (target,) = schema.targets
        if [s.kind for s in schema.slots] != ["audio"] or len(schema.slots[0].columns) != 1:
            found = ", ".join(f"{c} ({s.kind})" for s in schema.slots for c in s.columns)
            raise DataError(f"transcribing reads one column of sounds, got {found}: choose it with --inputs NAME")
        text = schema.column(target).params
        if text["different"] < 2:
            only = f"only {text['usual']!r}" if text["different"] else "no text at all"
            raise DataError(f"the target {target!r} has {only} in the training rows: there is nothing to learn")
        return cls(target, text)

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        """Each frame teaches: fewer rows a step, larger steps. It is silent for long before it says its first word."""
        batch, epochs = 16 if rows < 5000 else 32, int(np.clip(round(20_000 / rows), 8, 100))
        return Pace(batch, epochs, 3e-3 * min(1.0, 128 / cast(Role, system).width), patient=True)

    @property
    def needs(self) -> dict[str, int]:
        """How many outputs a frame has: the blank, and one for each piece."""
        return {"labels": self.text["unk"]}

    def sift(
        self, splits: dict[str, np.ndarray], rows: Rows, make: Callable[[], Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Without the training rows whose text needs more frames than their sound gives."""
        (slot,) = rows.schema.slots
        system = make()
        train = splits["train"][rows.presence()[slot.name][splits["train"]]]
        short = []
        for start in range(0, len(train), 256):
            batch = rows.batch(train[start : start + 256])
            frames = np.asarray([system.frames(int(s)) for s in batch["keep"][slot.name].sum(1)])
            labels = batch["target"][self.target].numpy()
            for i in np.flatnonzero(self.too_short(labels, frames)):
                short.append(int(train[start + i]))
                rows.bad.add(short[-1], self.target, self.asks, TOO_LONG, self.decode(labels[i]))
        left = np.setdiff1d(splits["train"], short)
        if not np.isin(left, train).any():
            raise DataError(
                f"no training row has a sound that is long enough for its text in {self.target!r}: is this the right "
                "column?"
            )
        return splits | {"train": left}, {TOO_LONG: len(short)}

    def too_short(self, truth: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(n,) bool: rows with fewer `frames` (n,) than their truth (n, U) needs. They can be neither learnt from nor
        got right."""
        sizes = (truth >= 0).sum(1)
        return sizes + ((truth[:, 1:] >= 0) & (truth[:, 1:] == truth[:, :-1])).sum(1) > frames

    def decode(self, labels: np.ndarray) -> str:
        """The text of labels (U,); 0 and negative ones are none."""
        return KINDS[self.asks].write(labels, self.text)

    def model(self, bound: Bound, objective: Objective | None = None) -> Transcriber:
        return Transcriber(bound, self.target)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        """A row without a sound gets the commonest text."""
        there, said = outputs["there"], [self.decode(row) for row in outputs["labels"]]
        return {
            "text": [text if real else self.text["usual"] for text, real in zip(said, there)],
            "probability": np.where(there, np.exp(outputs["score"]).astype(np.float64), self.text["share"]),
        }

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        """Of the truth the `text`."""
        return {"text": [self.decode(row) for row in batch["target"][self.target].numpy()]}, answers

    def columns(self, answers: Answers) -> dict[str, Any]:
        return beside({self.target: answers["text"]}, {"probability": answers["probability"]})

    def describe(self) -> str:
        kind = "pieces" if self.text["spelling"]["merges"] else "characters"
        size = len(self.text["spelling"]["pieces"])
        return f"texts of {size} {kind}, commonest {self.text['usual'][:40]!r} {self.text['share']:.0%}"

    def to_json(self) -> dict:
        return {"task": self.name}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Transcribe:
        return cls.learn(schema)


class TranscribeInWords(Transcripts, Caption):
    """A text per row, of the words that the kind `text` learnt of the target."""

    name = "transcribe_in_words"
    wants: ClassVar[str] = "transcribing reads one column of sounds"

    @classmethod
    def reads(cls, kinds: list[str]) -> bool:
        return kinds == ["audio"]

    def aside(self, *_: Any, **__: Any) -> dict[str, int]:
        """Nothing: a row without a sound is answered too."""
        return {}

    def pace(self, rows: int, system: Model, own: bool) -> Pace:
        """It writes without hearing for long before it finds what is said where."""
        return super().pace(rows, system, own)._replace(patient=True)


TASKS = (Transcribe, TranscribeInWords)
