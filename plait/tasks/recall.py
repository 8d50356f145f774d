"""Which text answers it? Its name, one of those that were taught, written by a generator that remembers what stands in
the texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.errors import DataError
from plait.evaluate.intervals import Score, bootstrap, proportion
from plait.parts.generation import Trie
from plait.parts.recall import recall
from plait.tasks.base import Answers, Objective, beside
from plait.tasks.bind import Bound
from plait.tasks.caption import Captioner
from plait.tasks.write import Write

ROLES = ("generator",)
TAKES = ("text",)

BEAMS = 10  # names that are found for a row
TOLD = 5  # of these, in a table of answers
Name = tuple[int, ...]  # its tokens, without beginning and end


class Recaller(Captioner):
    """A captioner that writes names of texts. names: those that exist, each with its place in the list of all; empty
    before any are taught."""

    def __init__(self, bound: Bound, name: str, most: int, names: dict[Name, str]):
        super().__init__(bound, name, most)
        self.names = names
        self._trie: Trie | None = None

    def before_training(self, rows: Rows, index: np.ndarray, seed: int) -> None:
        ids = rows.target(index)[self.name].numpy()
        cells = rows.table.column(self.name).take(pa.array(index)).to_pylist()
        self.names.clear()
        for row, cell in zip(ids, cells):
            if not (tokens := bare(row)):
                continue
            told = self.names.setdefault(tokens, str(cell))
            if told != str(cell):
                raise DataError(
                    f"the names {told!r} and {str(cell)!r} are the same to the tokenizer: give names that differ in "
                    "letters or figures, whatever their case"
                )
        self._trie = None

    def answer(self, batch: dict) -> dict[str, Tensor]:
        """`names` (B, K, N) int64: tokens of the likeliest names, 0 behind their ends; their log-probabilities
        `scores` (B, K), -inf where there are fewer; `loss` and `there` as a captioner's."""
        if not self.names:
            raise DataError("no name of a text was taught yet: train before asking")
        if self._trie is None:
            self._trie = Trie(self.names, self.bound.system.end)
        ready, there = self.read(batch)
        tokens, scores = recall(self.bound.system, ready, self._trie, BEAMS)
        return {"names": tokens, "scores": scores, "loss": self.cost(ready, batch, there), "there": there}


class Recall(Write):
    """A name per row, as the training table writes it. Rows are texts with their own names, and questions with the
    names of the texts that answer them; both are taught alike. Answers are `found`, a list of names a row, the
    likeliest first, `likely` (n, K), their log-probabilities, `loss` and `there`.

    names: those that exist, by their tokens.
    """

    name = choice = "recall"
    noun = "recall"
    auto = "dsi"
    beams = False
    wants = "recall reads one column of texts and questions, and a picture or a sound beside"

    def __init__(self, target: str, text: dict, names: dict[Name, str] | None = None):
        super().__init__(target, text)
        self.names = names or {}

    def model(self, bound: Bound, objective: Objective | None = None) -> Recaller:
        return Recaller(bound, self.target, self.text["max_tokens"] - 1, self.names)

    def finish(self, outputs: dict[str, np.ndarray]) -> Answers:
        """A row with nothing to read gets the commonest name."""
        found = []
        for names, scores, there in zip(outputs["names"], outputs["scores"], outputs["there"], strict=True):
            told = [self.names[bare(np.append(0, row))] for row, s in zip(names, scores) if np.isfinite(s)]
            found.append(told if there else [self.text["usual"]])
        likely = np.where(outputs["there"][:, None], outputs["scores"].astype(np.float64), -np.inf)
        likely[~outputs["there"], 0] = np.log(self.text["share"])
        loss = outputs["loss"].astype(np.float64)
        return {"found": found, "likely": likely, "loss": loss, "there": outputs["there"]}

    def record(self, batch: dict, answers: Answers) -> tuple[Answers, Answers]:
        """Of the truth the name, as `text`; one that was never taught is not among the answers."""
        ids = batch["target"][self.target].numpy()
        text = [self.names.get(bare(own)) or self.true(own, int(row)) for own, row in zip(ids, batch["row"])]
        return {"text": text, "tokens": (ids[:, 1:] >= 0).sum(1)}, answers

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """How often the name is the first one, and among the first ten, and the mean of 1 / its place."""
        place = self._places(truth, answers)
        out = [proportion("hits@1", place == 1), proportion(f"hits@{BEAMS}", place <= BEAMS)]
        return [*out, bootstrap("reciprocal rank", lambda m: m[..., 0], 1 / place[:, None], "higher")]

    def guide(self, truth: Answers, answers: Answers) -> float:
        """How often the name is the first one, and a little what the true names cost."""
        right, cost = self._places(truth, answers) == 1, answers["loss"][np.isfinite(answers["loss"])]
        return float(right.mean()) - 0.02 * float(cost.mean() if len(cost) else 0.0)

    def baseline(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        return self.scores(truth, {"found": [[self.text["usual"]]] * len(truth["text"])})

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """1 where the first name is the right one."""
        return (self._places(truth, answers) == 1).astype(float)

    def columns(self, answers: Answers) -> dict[str, Any]:
        found, p = answers["found"], np.exp(answers["likely"])
        out = beside({self.target: [told[0] for told in found]}, {"probability": p[:, 0]})
        for k in range(1, min(TOLD, max(map(len, found), default=0))):
            told = [names[k] if k < len(names) else None for names in found]
            out = beside(out, {f"{self.target} {k + 1}": told, f"probability {k + 1}": p[:, k]})
        return out

    def to_json(self) -> dict:
        return {"task": self.name, "names": [[list(tokens), name] for tokens, name in self.names.items()]}

    @classmethod
    def from_json(cls, state: dict, schema: Schema) -> Recall:
        (target,) = schema.targets
        names = {tuple(tokens): name for tokens, name in state.get("names", ())}
        return cls(target, schema.column(target).params, names)

    @staticmethod
    def _places(truth: Answers, answers: Answers) -> np.ndarray:
        """(n,): where the true name stands among those that are found, from 1; infinity where it does not."""
        places = [
            names.index(true) + 1 if true in names else np.inf
            for true, names in zip(truth["text"], answers["found"], strict=True)
        ]
        return np.asarray(places)


def bare(ids: np.ndarray) -> Name:
    """Ids of a text (U,) with a beginning and an end, and what is no token behind it -> those between."""
    real = ids[1:][ids[1:] > 0] if len(ids) else ids
    return tuple(int(i) for i in real[:-1])


TASKS = (Recall,)
