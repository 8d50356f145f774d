"""What is learnt of the validation rows once a model is trained: how sure it may sound, and from what probability on
two classes are told apart."""

from __future__ import annotations

import numpy as np

PLENTY = 200  # rows of the rarer class from which on their own labels say where to cut, beside what they make likely
LIMITS = (-3.0, 3.0)  # of the logarithm of a temperature
DOUBTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
MOST = 200_000  # logits that doubt is sought by
DOUBTFUL = 100  # rows: of fewer, doubt is not told from luck
SURE = 2.0  # nats that all rows together must gain by one: two standard errors


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(1, keepdims=True)
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def cooled(x: np.ndarray, prior: np.ndarray, temperature: float) -> np.ndarray:
    """Logits (n, K), of which what goes beyond `prior` (K,) is divided by the temperature: a row of which nothing is
    known stays as it is."""
    return x if temperature == 1 else (prior + (x - prior) / temperature).astype(x.dtype)


def best_temperature(x: np.ndarray, prior: np.ndarray, truth: np.ndarray, w: np.ndarray | None = None) -> float:
    """By what to divide the logits x (n, K) beyond the prior, so that the log loss of truth (n,) in 0..K-1 is least,
    from e^-3 to e^3 (Guo et al. 2017). Of one column, truth of 0 and 1, x are log-odds. w (n,): how much rows
    count. 1, unless these rows are so much likelier by another that chance would seldom make them so: few rows that are
    all right are no reason to be sure."""
    if x.shape[1] == 1:
        x, prior = np.concatenate([np.zeros_like(x), x], 1), np.r_[0.0, prior]
    rows, w = np.arange(len(x)), np.ones(len(x)) if w is None else w

    def loss(log: float) -> float:
        return float(-w @ log_softmax(cooled(x, prior, np.exp(log)))[rows, truth]) + 2 * log**2  # a weak pull to 1

    ratio, (low, high) = (5**0.5 - 1) / 2, LIMITS  # golden section: the loss is convex in 1 / T, hence unimodal
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = loss(a), loss(b)
    for _ in range(30):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = loss(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = loss(b)
    found = (low + high) / 2
    return float(np.exp(found)) if loss(0.0) - loss(found) > SURE else 1.0


def doubted(x: np.ndarray, prior: np.ndarray, temperature: float, doubt: float) -> np.ndarray:
    """Probabilities (n, K): those of the cooled logits, of which a share `doubt` is given back to the prior's."""
    x = cooled(x, prior, temperature)
    z = np.exp(x - x.max(1, keepdims=True))
    z = z / z.sum(1, keepdims=True)
    return z if not doubt else ((1 - doubt) * z + doubt * np.exp(log_softmax(prior[None]))).astype(z.dtype)


def best_doubt(x: np.ndarray, prior: np.ndarray, truth: np.ndarray, w: np.ndarray | None = None) -> tuple[float, float]:
    """The temperature and the doubt by which truth (n,) is likeliest. Where labels are wrong at random, or what is
    learnt should bend and does not, no temperature is right for all rows: doubt then keeps the surest ones from being
    too sure. Both must earn their place as a temperature alone does; of few rows there is none, since with it hardly
    any sureness would be too much for rows that are nearly all right."""
    some = np.linspace(0, len(x) - 1, max(1, min(len(x), MOST // x.shape[1]))).astype(np.int64)
    x, truth, w = x[some], truth[some], np.ones(len(some)) if w is None else w[some]

    def loss(t: float, doubt: float) -> float:
        p = doubted(x.astype(np.float64), prior, t, doubt)[np.arange(len(x)), truth]
        return float(-w @ np.log(np.maximum(p, 1e-30))) + 2 * np.log(t) ** 2

    alone = best_temperature(x, prior, truth, w)
    found, least = (alone, 0.0), loss(alone, 0.0) - SURE
    if len(truth) < DOUBTFUL:
        return found
    for doubt in DOUBTS:
        for t in np.exp(np.linspace(*LIMITS, 31)):
            if (value := loss(float(t), doubt)) < least:
                found, least = (float(t), doubt), value
    return found


def likely(odds: np.ndarray, truth: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(n,): the probability of truth (n,) bool given log-odds, by logistic regression on these alone."""
    slope, offset = straightened(odds, truth, w)
    return 1 / (1 + np.exp(-np.clip(slope * np.clip(odds, -30, 30) + offset, -40, 40)))


def straightened(odds: np.ndarray, truth: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(2,): slope and offset of that; the slope is held near 1 and the offset near 0 as by one row each (Platt
    1999)."""
    y, x = truth.astype(np.float64), np.stack([np.clip(odds, -30, 30), np.ones(len(odds))], 1)
    start = at = np.array([1.0, 0.0])

    def loss(at: np.ndarray) -> float:
        z = x @ at
        return float(w @ (np.logaddexp(0, z) - y * z) + np.square(at - start).sum() / 2)

    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ at, -40, 40)))
        slope = x.T @ (w * (p - y)) + (at - start)
        step = np.linalg.solve((x * (w * p * (1 - p))[:, None]).T @ x + np.eye(2), slope)
        while loss(at - step) > loss(at) and np.abs(step).max() > 1e-9:  # Newton's step may go too far
            step = step / 2
        at = at - step
        if np.abs(step).max() < 1e-7:
            break
    return at


def at_cuts(name: str, yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """(n,): the metric where the first 1, 2, ... n rows are answered yes, of which yes (n,) and no (n,) are right and
    wrong, in weights."""
    hits, false = np.cumsum(yes), np.cumsum(no)
    true, untrue = hits[-1], false[-1]
    f1 = 2 * hits / np.maximum(hits + false + true, 1e-300)
    if name == "f1":
        return f1
    if name == "f1_macro":
        rest = untrue - false
        return (f1 + 2 * rest / np.maximum(rest + (true - hits) + untrue, 1e-300)) / 2
    if name == "balanced_accuracy":
        return (hits / max(true, 1e-300) + 1 - false / max(untrue, 1e-300)) / 2
    raise KeyError(name)


def threshold(name: str, p: np.ndarray, truth: np.ndarray, w: np.ndarray | None = None) -> float:
    """From what probability on to answer yes, so that the metric is best: in expectation, by how likely p (n,) makes a
    yes on these rows, since of few yeses the best cut is mostly luck; where the rarer sort has 200 rows, their own
    labels count as much. truth (n,) bool."""
    w = np.ones(len(p)) if w is None else w
    if not len(p) or truth.all() or not truth.any():
        return 0.5
    p64 = np.clip(p.astype(np.float64), 1e-12, 1 - 1e-12)
    q = likely(np.log(p64 / (1 - p64)), truth, w)
    order = np.argsort(-p, kind="stable")
    value = at_cuts(name, (w * q)[order], (w * (1 - q))[order])
    if min(truth.sum(), (~truth).sum()) >= PLENTY:
        value = value + at_cuts(name, (w * truth)[order], (w * ~truth)[order])
    ranked = p[order].astype(np.float64)
    last = np.r_[ranked[1:] < ranked[:-1], True]  # rows with one probability are answered alike
    best = int(np.argmax(np.where(last, value, -np.inf)))
    return float((ranked[best] + ranked[best + 1]) / 2) if best + 1 < len(ranked) else float(ranked[best]) / 2


def label_thresholds(p: np.ndarray, truth: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    """(K,): from what probability on each label is answered, so that the F1 of all together is best; as `threshold`, by
    how likely p (n, K) makes each on these rows. Where that is right, one cut of it is best for all labels (Lipton,
    Elkan and Naryanaswamy 2014). truth (n, K) of 1, 0 and -100 = unknown; above 1: it is never answered."""
    known, right = truth != -100, truth == 1
    share = (np.ones(len(p)) if w is None else w)[:, None] * known
    if not (right & known).any():
        return np.full(p.shape[1], 0.5)
    if right[known].all():
        return np.zeros(p.shape[1])
    p64 = np.clip(p.astype(np.float64), 1e-12, 1 - 1e-12)
    odds = np.clip(np.log(p64 / (1 - p64)), -30, 30)
    fits = np.stack([straightened(odds[some, k], right[some, k], share[some, k]) for k, some in enumerate(known.T)])
    rising = fits[:, 0] > 1e-6  # of another label the odds say nothing: all rows have it, or none
    likely = np.clip((share * right).sum(0) / np.maximum(share.sum(0), 1e-12), 1e-12, 1 - 1e-12)
    slope, offset = np.where(rising, fits[:, 0], 0.0), np.where(rising, fits[:, 1], np.log(likely / (1 - likely)))
    z = np.clip(slope * odds + offset, -40, 40)
    rows, labels = np.nonzero(known)
    z, y, s = z[rows, labels], right[rows, labels], share[rows, labels]
    order, q = np.argsort(-z, kind="stable"), 1 / (1 + np.exp(-z))
    value = at_cuts("f1", (s * q)[order], (s * (1 - q))[order])
    if min(y.sum(), (~y).sum()) >= PLENTY:
        value = value + at_cuts("f1", (s * y)[order], (s * ~y)[order])
    ranked = z[order]
    best = int(np.argmax(np.where(np.r_[ranked[1:] < ranked[:-1], True], value, -np.inf)))
    cut = (ranked[best] + ranked[best + 1]) / 2 if best + 1 < len(ranked) else ranked[best] - 1
    at = (cut - offset) / np.where(rising, slope, 1.0)
    found = np.where(at > np.log(1e-12), 1 / (1 + np.exp(-np.clip(at, -40, 40))), 0.0)  # a probability may be 0
    return np.where(rising, found, np.where(offset >= cut, 0.0, 2.0))
