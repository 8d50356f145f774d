"""What is asked of it? A text per row that answers the row's own question about its picture, written by a generator."""

from __future__ import annotations

import numpy as np

from plait.evaluate.intervals import Score
from plait.tasks.base import Answers
from plait.tasks.write import Write

ROLES = ("generator",)
TAKES = ("image", "text")


class AnswerQuestion(Write):
    """The answer to a question about a picture. It is right where it is the true one word for word, as the tokenizer
    gives both back."""

    name = choice = "answer"
    noun = "answers to questions"
    auto = "llava"
    wants = "answering reads one column of pictures and one of questions"

    @classmethod
    def reads(cls, kinds: list[str]) -> bool:
        return sorted(kinds) == ["image", "text"]

    def scores(self, truth: Answers, answers: Answers, queries: np.ndarray | None = None) -> list[Score]:
        """Exact match first."""
        return sorted(super().scores(truth, answers, queries), key=lambda score: score.name != "exact match")

    def guide(self, truth: Answers, answers: Answers) -> float:
        """How many are right, and a little what the true texts cost."""
        found = {s.name: s.value for s in self.scores(truth, answers)}
        return found["exact match"] - 0.02 * float(np.log(found.get("perplexity", 1.0)))

    def per_row(self, truth: Answers, answers: Answers) -> np.ndarray:
        """1 where the answer is right."""
        return np.asarray([t == a for t, a in zip(truth["text"], answers["text"], strict=True)], float)


TASKS = (AnswerQuestion,)
