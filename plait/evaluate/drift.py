"""How far new cells lie from those of a reference, and how far chance alone would carry them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from plait.errors import PlaitError
from plait.evaluate.intervals import finite

DRAWS = 2000  # tables with the same sums, by which chance is told


class Distance(NamedTuple):
    """name: of the figure; value: 0 where both are alike; chance: what it would seldom exceed if both were drawn from
    one population."""

    name: str
    value: float
    chance: float

    @property
    def beyond(self) -> bool:
        return self.value > self.chance


def kolmogorov_smirnov(reference: np.ndarray, new: np.ndarray, level: float = 0.05) -> Distance:
    """The largest difference of the two distribution functions, of numbers (n,) and (m,); chance: by its asymptotic
    law at `level`."""
    a, b = (
        np.sort(finite(np.asarray(x, np.float64), what)) for x, what in ((reference, "the reference"), (new, "new"))
    )
    both = np.unique(np.concatenate([a, b]))
    gap = np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)
    chance = math.sqrt(-math.log(level / 2) / 2 * (1 / len(a) + 1 / len(b)))
    return Distance("Kolmogorov-Smirnov", float(np.abs(gap).max()), min(chance, 1.0))


def total_variation(reference: np.ndarray, new: np.ndarray, level: float = 0.05, seed: int = 0) -> Distance:
    """Half the sum of the differences of shares, of counts (K,) twice; chance: that of tables with the same sums."""
    a, b = np.asarray(reference, np.int64), np.asarray(new, np.int64)
    if a.shape != b.shape or a.ndim != 1 or not (a.sum() and b.sum()):
        raise PlaitError(f"got counts {a.shape} and {b.shape}, expected (K,) twice, and a row in each")
    n, m = int(a.sum()), int(b.sum())
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(a + b, n, DRAWS, method="marginals")
    by_luck = np.abs(drawn / n - (a + b - drawn) / m).sum(1) / 2
    return Distance("total variation", float(np.abs(a / n - b / m).sum() / 2), float(np.quantile(by_luck, 1 - level)))


def stability_index(reference: np.ndarray, new: np.ndarray) -> float:
    """The population stability index of counts (K,) twice: the sum of (q - p) log(q / p) of their shares, each count
    with a half added, so that a class of only one side does not make it endless."""
    a, b = (np.asarray(x, np.float64) + 0.5 for x in (reference, new))
    p, q = a / a.sum(), b / b.sum()
    return float(((q - p) * np.log(q / p)).sum())


def unseen_words(reference: Sequence[str], new: Sequence[str], level: float = 0.05) -> tuple[Distance, float]:
    """The share of the words of `new` texts that no text of the reference has, less the share of its own words that no
    other of its texts has, which is what new texts of that sort have (Good 1953); and the first share itself."""
    split = [text.casefold().split() for text in reference]
    texts: dict[str, int] = {}
    for words in split:
        for word in set(words):
            texts[word] = texts.get(word, 0) + 1
    own = np.array([[sum(texts[w] == 1 for w in words), len(words)] for words in split], np.float64).reshape(-1, 2)
    told = [text.casefold().split() for text in new]
    other = np.array([[sum(w not in texts for w in words), len(words)] for words in told], np.float64).reshape(-1, 2)
    if not (own[:, 1].sum() and other[:, 1].sum()):
        raise PlaitError("got no word on one side, expected texts with words on both")
    usual, share = (float(x[:, 0].sum() / x[:, 1].sum()) for x in (own, other))
    error = sum(np.square(x[:, 0] - r * x[:, 1]).sum() / x[:, 1].sum() ** 2 for x, r in ((own, usual), (other, share)))
    chance = NormalDist().inv_cdf(1 - level / 2) * math.sqrt(error)
    return Distance("unseen words, more than usual", max(share - usual, 0.0), chance), share
