"""Written texts against the truth: chrF, exact match, BLEU-4 and perplexity, with 95% intervals. numpy only.

Each is a function of sums over rows, so that its interval comes from drawing rows; one truth per row. Texts are
compared as they are given: whoever compares makes them alike in case and form first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.intervals import Score, bootstrap, bounded, draw_sums, proportion

LETTERS, WORDS = 6, 4  # the longest n-grams of chrF and of BLEU
BETA = 2.0  # how much more recall weighs than precision in chrF
WORD = re.compile(r"\w+|[^\w\s]")


def captions(
    truth: Sequence[str],
    answers: Sequence[str],
    loss: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
    asked: np.ndarray | None = None,
) -> list[Score]:
    """chrF, exact match, BLEU-4 and perplexity of n texts, all but the last from 0 to 1.

    loss (n,): what the true text costs the model, in nats; tokens (n,): of how many tokens; asked (n,) bool: the rows
    that it was asked of. Perplexity is exp(loss / tokens) over all rows that were asked; it is left out where there is
    none, and BLEU-4 where no truth has four words.
    Raises ValueError where there is no text to compare with, and for a loss that was asked and is not finite.
    """
    if not len(truth) or not any(map(str.strip, truth)):
        raise PlaitError(
            f"got {len(truth)} texts without a letter: there is nothing to compare with; give rows that have a text"
        )
    n, letters, words = len(truth), letter_rows(truth, answers), word_rows(truth, answers)
    scores = [bounded("chrF", float(chrf(letters.sum(0))), chrf(draw_sums(letters, 0)), n)]
    scores.append(proportion("exact match", np.asarray([t == a for t, a in zip(truth, answers, strict=True)])))
    if (words[:, -1] >= WORDS).any():
        scores.append(bounded("BLEU-4", float(bleu(words.sum(0))), bleu(draw_sums(words, 0)), n))
    if loss is not None and asked is not None and tokens is not None and (asked := asked & (tokens > 0)).any():
        scores.append(
            bootstrap(
                "perplexity", lambda m: np.exp(m[..., 0] / m[..., 1]), np.stack([loss, tokens], 1)[asked], "lower"
            )
        )
    return scores


def chrf_rows(truth: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Each row's own chrF (n,)."""
    return chrf(letter_rows(truth, answers))


def letter_rows(truth: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """(n, 3 * 6): for n-grams of one to six letters, spaces left out, how many agree, how many are answered and how
    many are true."""
    pairs = (("".join(t.split()), "".join(a.split())) for t, a in zip(truth, answers, strict=True))
    return np.asarray([_overlaps(t, a, LETTERS) for t, a in pairs], np.float64).reshape(-1, 3 * LETTERS)


def word_rows(truth: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """(n, 3 * 4 + 2): as `letter_rows` for one to four words (or signs), and the number of words answered and true."""
    pairs = ((WORD.findall(t), WORD.findall(a)) for t, a in zip(truth, answers, strict=True))
    return np.asarray([(*_overlaps(t, a, WORDS), len(a), len(t)) for t, a in pairs], np.float64).reshape(
        -1, 3 * WORDS + 2
    )


def _overlaps(truth: Sequence, answer: Sequence, most: int) -> list[int]:
    out = []
    for n in range(1, most + 1):
        true, said = (Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1)) for x in (truth, answer))
        out += [(true & said).total(), said.total(), true.total()]
    return out


def chrf(sums: np.ndarray) -> np.ndarray:
    """(..., 18) -> (...): precision and recall averaged over the lengths that both sides have, joined with recall twice
    as heavy.

    Source: Popovic 2015, as sacrebleu's chrF2 counts it, but that a text too short for the longer n-grams does not
    spare the other side's.
    """
    agree, said, true = np.moveaxis(sums.reshape(*sums.shape[:-1], LETTERS, 3), -1, 0)
    both = (said > 0) & (true > 0)
    count = np.maximum(both.sum(-1), 1)
    precision = np.where(both, agree / np.maximum(said, 1e-9), 0.0).sum(-1) / count
    recall = np.where(both, agree / np.maximum(true, 1e-9), 0.0).sum(-1) / count
    return (1 + BETA**2) * precision * recall / np.maximum(BETA**2 * precision + recall, 1e-12)


def bleu(sums: np.ndarray) -> np.ndarray:
    """(..., 14) -> (...): the geometric mean of the four precisions, less for answers that are shorter than the truth.
    Not smoothed.

    Source: Papineni et al. 2002.
    """
    agree, said, _ = np.moveaxis(sums[..., : 3 * WORDS].reshape(*sums.shape[:-1], WORDS, 3), -1, 0)
    short, full = sums[..., -2], sums[..., -1]
    with np.errstate(divide="ignore"):
        mean = np.exp(np.log(agree / np.maximum(said, 1e-9)).mean(-1))
    return mean * np.exp(np.minimum(0.0, 1 - full / np.maximum(short, 1e-9)))
