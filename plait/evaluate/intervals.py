"""A score with its 95% interval, and the four ways an interval is found here: Wilson for a proportion, the logit of a
statistic with known influence values, the bootstrap for functions of sums, and pairing for the difference between two
models on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from plait.errors import PlaitError

Z = 1.959963984540054  # the normal distribution's 97.5% point
DRAWS = 1000
RANGES = {"R2": (-np.inf, 1.0), "Spearman": (-1.0, 1.0), "gain": (-np.inf, np.inf)}  # of scores that are no shares
MOST_UNITS = 20_000  # rows (or groups of rows) that a bootstrap draws from


class Score(NamedTuple):
    """A metric's value over n rows with its 95% interval; `better` is "higher" or "lower"."""

    name: str
    value: float
    low: float
    high: float
    n: int
    better: str

    def to_json(self) -> dict:
        """The six fields as plain Python values."""
        return {
            "name": self.name,
            "value": float(self.value),
            "low": float(self.low),
            "high": float(self.high),
            "n": int(self.n),
            "better": self.better,
        }

    def __str__(self) -> str:
        return f"{self.name} {number(self.value)} [{number(self.low)}, {number(self.high)}]"


def number(value: float) -> str:
    """Three decimals for what is near one, fewer or more digits for what is large or tiny: 0.871, 12345, 0.00069."""
    size = abs(value)
    if size < 1e-9 or 0.001 <= size < 1000:
        return f"{value if size >= 1e-9 else 0.0:.3f}"
    return f"{value:.2g}" if size < 1 else f"{value:.0f}" if size < 1e6 else f"{value:.4g}"


def digits(score: Score) -> tuple[str, str, str]:
    """Value and ends in as many decimals as the width of the interval gives a sense to: two digits of it."""
    width = score.high - score.low
    if not 0 < width < np.inf or max(map(abs, score[1:4])) >= 1e6:
        return number(score.value), number(score.low), number(score.high)
    places = int(np.clip(1 - np.floor(np.log10(width)), 0, 6))
    value, low, high = (f"{v:.{places}f}" for v in (score.value, score.low, score.high))
    return value, low, high


def wilson(hits: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of `hits` successes in `n` trials (Wilson 1927).

    The lower end is exactly 0 when hits = 0, the upper end exactly 1 when hits = n.
    Raises ValueError for n = 0 and for hits outside 0..n."""
    if n <= 0:
        raise PlaitError(
            f"got n = {n}: an interval needs at least one row; evaluate on a table with rows that have a target"
        )
    if not 0 <= hits <= n:
        raise PlaitError(f"got {hits} successes in {n} trials, expected 0 to {n}")
    share, weight = hits / n, Z * Z / n
    middle = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * np.sqrt(share * (1 - share) / n + weight / (4 * n))
    return 0.0 if hits == 0 else float(max(0.0, middle - half)), 1.0 if hits == n else float(min(1.0, middle + half))


def proportion(name: str, rows: np.ndarray) -> Score:
    """The share of True among `rows` (n,), with Wilson's interval."""
    low, high = wilson(int(np.count_nonzero(rows)), len(rows))
    return Score(name, float(np.mean(rows)), low, high, len(rows), "higher")


def from_influence(name: str, value: float, influence: np.ndarray, n: int, units: int) -> Score:
    """Interval of a statistic in [0, 1] from the rows' influence values (already divided by the number of rows), on the
    logit scale.

    The variance is the sum of squares of `influence` (infinitesimal jackknife, Efron 1982; for AUROC this is DeLong's).
    A perfect
    (or perfectly wrong) sample shows no variance: its interval is Wilson's for `units` trials instead of a point."""
    error = float(np.sqrt(np.sum(np.square(influence))))
    spread = value * (1 - value)
    if spread < 1e-12:
        low, high = wilson(round(value) * units, units)
        return Score(name, value, low, high, n, "higher")
    middle, half = np.log(value / (1 - value)), min(Z * error / spread, 700.0)
    low, high = 1 / (1 + np.exp(-(middle - half))), 1 / (1 + np.exp(-(middle + half)))
    return Score(name, value, float(low), float(high), n, "higher")


def draw_weights(n: int, seed: int, draws: int = DRAWS) -> Iterator[np.ndarray]:
    """Blocks (draws in this block, n) float64 of how often each of n rows is drawn; together `draws` bootstrap
    samples."""
    rng = np.random.default_rng(seed)
    block = max(1, min(draws, 2_000_000 // n))
    for start in range(0, draws, block):
        count = min(block, draws - start)
        picks = rng.integers(0, n, size=(count, n))
        picks += np.arange(count)[:, None] * n
        yield np.bincount(picks.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def draw_sums(columns: np.ndarray, seed: int) -> np.ndarray:
    """Sums of the `columns` (n, c) over 1000 bootstrap samples of the rows: (1000, c).

    Beyond 20,000 rows, random groups of rows are drawn together: a sum over groups has the same variance as a sum over
    rows."""
    n = len(columns)
    if n > MOST_UNITS:
        order = np.random.default_rng(seed).permutation(n)
        edges = np.linspace(0, n, MOST_UNITS, endpoint=False).astype(np.int64)
        columns = np.add.reduceat(columns[order], edges, axis=0)
    return np.concatenate([weights @ columns for weights in draw_weights(len(columns), seed)])


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """The 2.5% and 97.5% points of the finite bootstrap draws."""
    low, high = np.percentile(draws[np.isfinite(draws)], [2.5, 97.5])
    return float(low), float(high)


def from_draws(name: str, value: float, draws: np.ndarray, n: int, better: str) -> Score:
    """A score with the percentile interval of its bootstrap draws."""
    low, high = percentiles(draws)
    return Score(name, float(value), min(low, float(value)), max(high, float(value)), n, better)


def bounded(name: str, value: float, draws: np.ndarray, n: int) -> Score:
    """As `from_draws` for a share of right answers; a perfect or hopeless sample, whose draws never vary, gets Wilson's
    interval."""
    score = from_draws(name, value, draws, n, "higher")
    if score.low == score.high and score.value in (0.0, 1.0):
        low, high = wilson(score.value * n, n)
        return score._replace(low=low, high=high)
    return score


def mean_score(name: str, rows: np.ndarray, better: str, seed: int = 0) -> Score:
    """The mean of per-row values (n,) with its bootstrap interval."""
    rows = finite(rows, f"the rows of {name}")
    return from_draws(name, rows.mean(), draw_sums(rows[:, None], seed)[:, 0] / len(rows), len(rows), better)


def bootstrap(
    name: str, statistic: Callable[[np.ndarray], np.ndarray], columns: np.ndarray, better: str, seed: int = 0
) -> Score:
    """Score of any `statistic` that maps mean columns (..., c) to values (...), for per-row `columns` (n, c)."""
    columns = finite(columns, f"the rows of {name}")
    with np.errstate(divide="ignore", invalid="ignore"):
        return from_draws(
            name, statistic(columns.mean(0)), statistic(draw_sums(columns, seed) / len(columns)), len(columns), better
        )


def over_folds(score: Score, value: float, without: np.ndarray, ratio: float) -> Score:
    """A score of rows that several models answered, each those of its own fold, with an interval that covers what other
    rows to learn from, and other first weights, would have made of it.

    score: with the interval of the rows alone, as if one fixed model had answered them. value: of the statistic over
    all folds; without (J,): of it without one fold each, NaN where there is none. ratio: rows held out by rows learnt
    from.

    The folds' own values are those of the jackknife, J value - (J - 1) without, which for a mean are the folds' means.
    Their variance S^2 counts (1 / J + ratio) times, since folds learn from much the same rows (Nadeau and Bengio 2003,
    Inference for the generalization error, Machine Learning 52), with Student's t of J - 1. The interval is never
    narrower than that of the rows.
    """
    low, high = value + (score.low - score.value), value + (score.high - score.value)
    without = without[np.isfinite(without)]
    if (count := len(without)) > 1:
        own = count * value - (count - 1) * without
        half = student(count - 1) * float(np.sqrt((1 / count + ratio) * own.var(ddof=1)))
        low, high = min(low, value - half), max(high, value + half)
    least, most = RANGES.get(score.name, (0.0, 1.0) if score.better == "higher" else (0.0, np.inf))
    low = max(low, least) if score.low >= least else low
    high = min(high, most) if score.high <= most else high
    return score._replace(value=float(value), low=float(min(low, value)), high=float(max(high, value)))


def student(freedom: int) -> float:
    """The 97.5% point of Student's t, by its expansion around the normal distribution's (Hill 1970); exact for 1 and
    2."""
    if freedom == 1:
        return 12.706204736432095
    if freedom == 2:
        return 4.302652729696142
    z, n = Z, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n ** (i + 1) for i, term in enumerate(terms))


def paired_gain(per_row_a: np.ndarray, per_row_b: np.ndarray, seed: int = 0) -> Score:
    """How much better a's mean is than b's on the same rows: mean(a - b), with the interval of a paired bootstrap."""
    return mean_score("gain", _differences(per_row_a, per_row_b), "higher", seed)


def paired_permutation_p(per_row_a: np.ndarray, per_row_b: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value that a and b have the same mean: the signs of the paired differences are flipped at random
    10,000 times (all 2^m ways where at most 12 rows differ)."""
    differences = _differences(per_row_a, per_row_b)
    differences = differences[differences != 0]
    m = len(differences)
    if m == 0:
        return 1.0
    seen = abs(differences.sum()) * (1 - 1e-9)  # equal sums in another order of addition must count as equal
    if m <= 12:
        signs = 1.0 - 2.0 * (np.arange(2**m)[:, None] >> np.arange(m) & 1)
        return float(np.mean(np.abs(signs @ differences) >= seen))
    rng, flips, extreme, block = np.random.default_rng(seed), 10_000, 0, max(1, 4_000_000 // m)
    for start in range(0, flips, block):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(min(block, flips - start), m), dtype=np.int8)
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= seen))
    return (extreme + 1) / (flips + 1)


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = finite(a, "the first model's rows"), finite(b, "the second model's rows")
    if a.shape != b.shape or a.ndim != 1:
        raise PlaitError(
            f"got rows of shapes {a.shape} and {b.shape}, expected the same rows (n,) twice; score both models on one "
            "table"
        )
    return a - b


def finite(values: np.ndarray, what: str) -> np.ndarray:
    """`values` as float64; raises ValueError with the count where some are NaN or infinite, or where there are none."""
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise PlaitError(f"got no values as {what}, expected at least one row; evaluate on rows that have a target")
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise PlaitError(
            f"got {bad} NaN or infinite values of {values.size} in {what}, expected finite numbers; "
            "a lower learning rate or float32 usually mends it"
        )
    return values
