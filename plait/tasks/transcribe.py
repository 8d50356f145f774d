"""What is said? A text per sound, written by a transcriber under CTC."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.arrow import as_text
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError
from plait.evaluate import transcripts
from plait.evaluate.intervals import Score
from plait.parts.objectives.ctc import ctc_rows, greedy, prefix_beam
from plait.tasks.base import MISSING, BadTargets, Objective, Pace, Task, TaskModel, TextOptions
from plait.tasks.bind import Bound
from plait.tasks.known import mean_over
from plait.tasks.spelling import Spelling, tidy

ROLES = ("transcriber",)

ANSWERS = np.dtype([("text", object), ("probability", np.float64)])
SHOWN = 12  # transcripts in the picture
TOO_LONG = "text too long for its sound, not learnt from"


class Transcriber(TaskModel):
    """Labels, and the CTC loss.

    frames: the most frames of any row. beam: prefixes kept a frame, 0 for the likeliest label of each frame.
    """

    def __init__(self, bound: Bound, frames: int, beam: int = 0):
        super().__init__(bound)
        self.frames, self.beam = frames, beam

    def logits(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, V) logits, (B,) lengths, (B,) bool whether there is a sound."""
        ready = self.bound.prepared(batch)
        (slot,) = self.bound.takes
        logits, lengths = self.bound.system.transcribe(ready[slot], ready["keep"].get(slot))
        return logits, lengths, ready["present"][slot]

    def answer(self, batch: dict) -> Tensor:
        """(B, 1 + frames): the log-probability, then the labels, 0 after the last; the log-probability is NaN where
        there is no sound."""
        logits, lengths, present = self.logits(batch)
        if self.beam:
            labels, logp = _beam(logits, lengths, self.beam)
        else:
            labels, logp = greedy(logits, lengths)
        labels = nn.functional.pad(labels, (0, self.frames - labels.shape[1])).float()
        out = torch.cat([logp.float()[:, None], labels], 1)
        return torch.where(
            present[:, None], out, torch.cat([torch.full_like(out[:, :1], torch.nan), torch.zeros_like(labels)], 1)
        )

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, Tensor]:
        logits, lengths, present = self.logits(batch)
        loss, fits = ctc_rows(logits, lengths, batch["target"])
        return {"loss": mean_over(loss, fits & present)}


def _beam(logits: Tensor, lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    logp = logits.float().log_softmax(2).cpu().numpy()
    labels, scores = np.zeros(logp.shape[:2], np.int64), np.zeros(len(logp), np.float32)
    for i, (row, length) in enumerate(zip(logp, lengths.tolist())):
        found, scores[i] = prefix_beam(row[:length], width)
        labels[i, : len(found)] = found
    return torch.from_numpy(labels).to(logits.device), torch.from_numpy(scores).to(logits.device)


class Transcribe(Task):
    """A text per row. spelling: what its labels stand for. common: the commonest transcript of the training rows, and
    its share.

    truth (n, U): labels, -100 after the last and in rows without a text.
    """

    name = choice = "transcribe"
    noun = "transcription"
    roles = ROLES
    dtype = np.int64
    of_text = True
    auto = "zipformer"
    longest = 1.0  # a sound that is cut no longer says what its text says
    whole = True
    beams = True

    def __init__(self, target: str, spelling: Spelling, common: tuple[str, float], samples: int):
        self.target, self.spelling, self.common, self.samples = target, spelling, tuple(common), samples

    @classmethod
    def learn(cls, table: Table, schema: Schema, rows: np.ndarray, options: TextOptions) -> Transcribe:
        """Characters of the training rows' texts, or about `options.pieces` pieces of words."""
        (target,) = schema.targets
        if [s.kind for s in schema.slots] != ["audio"] or len(schema.slots[0].columns) != 1:
            found = ", ".join(f"{c} ({s.kind})" for s in schema.slots for c in s.columns)
            raise DataError(f"transcribing reads one column of sounds, got {found}: choose it with --inputs NAME")
        texts = [t for t in _texts(table, target, rows) if t]
        if len(set(texts)) < 2:
            only = f"only {texts[0]!r}" if texts else "no text at all"
            raise DataError(f"the target {target!r} has {only} in the training rows: there is nothing to learn")
        usual, count = min(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
        return cls(
            target,
            Spelling.learn(texts, options.pieces),
            (usual, count / len(texts)),
            schema.shape(schema.slots[0].name)["samples"],
        )

    def pace(self, rows: int, system: nn.Module, own: bool) -> Pace:
        """Each frame teaches: fewer rows a step, larger steps. It is silent for long before it says its first word."""
        batch, epochs = 16 if rows < 5000 else 32, int(np.clip(round(20_000 / rows), 8, 100))
        return Pace(batch, epochs, 3e-3 * min(1.0, 128 / system.width), patient=True)

    @property
    def needs(self) -> dict[str, int]:
        """How many outputs a frame has: the blank, and one for each piece."""
        return {"labels": len(self.spelling) + 1}

    def encode(self, table: Table, schema: Schema) -> tuple[np.ndarray, BadTargets]:
        found, bad = [], []
        for i, text in enumerate(_texts(table, self.target)):
            found.append(self.spelling.encode(text) if text else [])
            if not text:
                bad.append((i, MISSING if table.column(self.target)[i].as_py() is None else "empty text", ""))
            elif self.spelling.unknown in found[-1]:
                bad.append((i, "a character that no training row has (counted as an error)", text))
        truth = np.full((len(table), max((len(f) for f in found), default=0) or 1), -100, np.int64)
        for row, labels in zip(truth, found):
            row[: len(labels)] = labels
        return truth, bad

    def sift(
        self, splits: dict[str, np.ndarray], rows: Rows, truth: np.ndarray, make: Callable[[], nn.Module]
    ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Without the training rows whose text needs more frames than their sound gives."""
        (slot,) = rows.schema.slots
        system = make()
        train = splits["train"][rows.presence()[slot.name][splits["train"]]]
        frames = np.zeros(len(train), np.int64)
        for start in range(0, len(train), 256):
            samples = rows.batch(train[start : start + 256])["keep"][slot.name].sum(1)
            frames[start : start + 256] = [system.frames(int(s)) for s in samples]
        short = train[self.too_short(truth[train], frames)]
        for row in short:
            rows.bad.add(row, self.target, "target", TOO_LONG, self.spelling.decode(truth[row].tolist()))
        left = np.setdiff1d(splits["train"], short)
        if not np.isin(left, train).any():
            raise DataError(
                f"no training row has a sound that is long enough for its text in {self.target!r}: is this the right column?"
            )
        return splits | {"train": left}, {TOO_LONG: len(short)}

    def too_short(self, truth: np.ndarray, frames: np.ndarray) -> np.ndarray:
        """(n,) bool: rows with fewer `frames` (n,) than their truth (n, U) needs. They can be neither learnt from nor
        got right."""
        sizes = (truth >= 0).sum(1)
        return sizes + ((truth[:, 1:] >= 0) & (truth[:, 1:] == truth[:, :-1])).sum(1) > frames

    def model(self, bound: Bound, objective: Objective | None = None) -> Transcriber:
        return Transcriber(bound, bound.system.frames(self.samples))

    def finish(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs (n, 1 + frames) -> (n,) of text and probability; a row without a sound gets the commonest text."""
        out = np.empty(len(outputs), ANSWERS)
        for i, row in enumerate(outputs):
            if np.isnan(row[0]):
                out[i] = self.common
            else:
                out[i] = self.spelling.decode(row[1:].astype(np.int64).tolist()), float(np.exp(row[0]))
        return out

    def _written(self, truth: np.ndarray) -> list[str]:
        return [self.spelling.decode(row.tolist()) for row in truth]

    def scores(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        return transcripts.transcription(self._written(truth), answers["text"].tolist())

    def guide(self, truth: np.ndarray, answers: np.ndarray) -> float:
        """What early stopping looks at: the error rates of words and, a little, of characters."""
        written, said = self._written(truth), answers["text"].tolist()
        words, letters = transcripts.word_rows(written, said).sum(0), transcripts.character_rows(written, said).sum(0)
        return -float(words[0] / words[1] + 0.1 * letters[0] / letters[1])

    def baseline(self, truth: np.ndarray, answers: np.ndarray, queries: np.ndarray | None = None) -> list[Score]:
        usual = np.empty(len(truth), ANSWERS)
        usual[:] = self.common
        return self.scores(truth, usual)

    def per_row(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """1 less the row's own word error rate."""
        words = transcripts.word_rows(self._written(truth), answers["text"].tolist())
        return 1 - words[:, 0] / np.maximum(words[:, 1], 1)

    def columns(self, answers: np.ndarray) -> dict[str, list]:
        return {self.target: answers["text"].tolist(), "probability": answers["probability"]}

    def picture(self, truth: np.ndarray, answers: np.ndarray) -> tuple[str, tuple[bytes, str]]:
        """Some rows, from the best to the worst, with each edit marked."""
        order = np.argsort(-self.per_row(truth, answers), kind="stable")
        order = order[np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int))]
        pairs = list(zip(self._written(truth[order]), answers["text"][order].tolist()))
        caption = "rows from the best to the worst; S another word, D a word left out, I one too many"
        return "Truth and answer", (transcripts.edited(pairs, SHOWN), caption)

    def describe(self) -> str:
        kind = "pieces" if self.spelling.merges else "characters"
        return f"texts of {len(self.spelling)} {kind}, commonest {self.common[0][:40]!r} {self.common[1]:.0%}"

    def to_json(self) -> dict:
        state = {"task": self.name, "target": self.target, "common": list(self.common), "samples": self.samples}
        return state | {"spelling": self.spelling.to_json()}

    @classmethod
    def from_json(cls, state: dict) -> Transcribe:
        return cls(state["target"], Spelling(**state["spelling"]), tuple(state["common"]), state["samples"])


def _texts(table: Table, target: str, rows: np.ndarray | None = None) -> list[str]:
    """Tidy texts of the target, "" where there is none."""
    cells = table.column(target).to_pylist()
    return ["" if c is None else tidy(as_text(c)) for c in (cells if rows is None else (cells[i] for i in rows))]


TASKS = (Transcribe,)
