"""How a ladder is learnt: each rung out of fold, so that what weighs them never sees rows that they were trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from plait.data.schema import Schema
from plait.tasks.beneath.asked import Asked, Classes, Labels, Number
from plait.tasks.beneath.design import TERMS, Design, Parts, chosen
from plait.tasks.beneath.folds import folds_of, splits, taken
from plait.tasks.beneath.kernel import WIDTHS
from plait.tasks.beneath.kernel import fit as fit_kernel
from plait.tasks.beneath.ladder import Ladder, Scale, Straight, standard_errors
from plait.tasks.beneath.means import encoded, with_means
from plait.tasks.beneath.quantiles import Quantiles
from plait.tasks.beneath.trees import Trees, grow, kept, scattered

LEAST = 24  # rows of which anything can be learnt out of fold
ROWS = {"linear": 60_000, "trees": 100_000}  # of more, so many are drawn
WORK = (
    1.5e11  # multiplications of a convex solver, about a minute: of more, one fold; of twenty times more, no such rung
)
SMALL = 2000  # rows: of no more, kernels and trees grown at random are tried too
LEAVES = (2, 8)  # fewest rows of a leaf that are tried, of trees grown at random
MANY = 20_000  # rows: of more, trees are tried on one fold
Reader = Callable[[np.ndarray], Parts]  # what the rows (n,) of a training hold
STRENGTHS = (1e-3, 1e5)  # 1 / penalty
BETTER = 0.998  # of a loss, from where another strength is better than one nearer to the usual
STEPS = 10  # numbers of rounds that are compared
HOPELESS = (
    0.98  # of a loss: where one fold of trees beside the linear model does not lower it so far, they are left out
)


def climb(
    read: Reader, y: np.ndarray, asked: Asked, schema: Schema, seed: int, *,
    weight: np.ndarray | None = None, unit: tuple[float, float] = (0.0, 1.0), design: Design | None = None,
) -> Ladder | None:  # fmt: skip
    """Learn all rungs from training rows.

    Args:
        read: gives what some of the rows hold, of `parts`; only rows that are drawn are asked for.
        y: what is asked of all of them, as `asked` says.
        weight: (n,) of each row.
        unit: the mean and spread by which numbers were standardised.
        design: what is read of rows, where that is known already.

    Returns None where too few rows, or nothing in them, can be read.
    """
    rows = drawn(asked.known(y), seed)
    if len(rows) < LEAST or not (given := read(rows)):
        return None
    y, weight = y[rows], None if weight is None else weight[rows]
    ladder = Ladder(schema, asked, design or Design.fit(given, schema, seed), asked.prior(y, weight), unit)
    if not ladder.design.told:
        return None
    if isinstance(asked, Number) and float(ladder.own(y).min()) >= 0:
        ladder.lowest = 0.0
    learner = Learner(ladder, given, y, weight, seed)
    oof: dict[str, np.ndarray] = {}
    for name in ("linear", "kernel", "trees", "forest"):
        found = getattr(learner, name)()
        if found is not None:
            oof[name] = found.answers
            ladder.told[name] = found.loss
    if not oof:
        return None
    _choose(ladder, oof, y, weight)
    ladder.how["blind"] = float(np.average(asked.losses(np.tile(ladder.prior, (len(y), 1)), y), weights=weight))
    learner.fit()
    return ladder


def drawn(known: np.ndarray, seed: int) -> np.ndarray:
    """The rows that simple models learn from, in a random order: those whose target is known, or so many of them, drawn
    alike."""
    return np.random.default_rng(seed).permutation(np.flatnonzero(known))[: max(ROWS.values())]


def again(ladder: Ladder, read: Reader, y: np.ndarray, seed: int, weight: np.ndarray | None = None) -> None:
    """Learn the rungs that answer once more, on these rows, with what was chosen."""
    rows = drawn(ladder.asked.known(y), seed)
    y, weight = y[rows], None if weight is None else weight[rows]
    ladder.prior = ladder.asked.prior(y, weight)
    Learner(ladder, read(rows), y, weight, seed).fit()


def out_of_fold(
    ladder: Ladder, read: Reader, y: np.ndarray, seed: int, weight: np.ndarray | None = None
) -> np.ndarray | None:
    """(n, K): what rungs as they were chosen answer to each row when they learn from the others; NaN where y is not
    known. None where there are so many rows that it would take long, and a few more of them change little."""
    rows = drawn(ladder.asked.known(y), seed)
    if len(rows) > MANY or ladder.how.get("single"):
        return None
    given, answers = read(rows), np.full((len(y), ladder.asked.count), np.nan)
    for train, test in splits(folds_of(y[rows], ladder.asked), False):
        one, some = replace(ladder), rows[train]
        again(one, partial(taken, taken(given, train)), y[some], seed, None if weight is None else weight[some])
        answers[rows[test]] = one.beneath(taken(given, test), np.ones(len(test), bool))
    return answers


class Tried(NamedTuple):
    """A rung out of fold: its loss, its answers (n, K), NaN where it was not asked, and the scale of a number."""

    loss: float
    answers: np.ndarray
    scale: Scale


def _choose(ladder: Ladder, oof: dict[str, np.ndarray], y: np.ndarray, weight: np.ndarray | None) -> None:
    """What the rungs say together, or one alone where that is as good."""
    asked, names = ladder.asked, sorted(oof, key=lambda name: ladder.told[name])
    there = ~np.isnan(np.concatenate(list(oof.values()), 1)).any(1)
    found, y, w = [oof[name][there] for name in names], y[there], None if weight is None else weight[there]
    alone = asked.mix(found[:1], y, w)
    ladder.rungs = {names[0]: float(alone[0])}
    if len(names) == 1:
        return
    weights = asked.mix(found, y, w)
    both = asked.losses(asked.mixed(weights, found), y)
    gain = asked.losses(asked.mixed(alone, found[:1]), y) - both
    ladder.told["both"] = float(np.average(both, weights=w))
    if standard_errors(gain, w) > 0.5:
        ladder.rungs = {name: float(share) for name, share in zip(names, weights) if share > 1e-3}


class Learner:
    """Learns the rungs of `ladder` from rows in a random order."""

    def __init__(self, ladder: Ladder, given: Parts, y: np.ndarray, weight: np.ndarray | None, seed: int):
        self.ladder, self.given, self.y, self.weight, self.seed = ladder, given, y, weight, seed
        self.asked, self.design = ladder.asked, ladder.design
        self.folds = folds_of(y, ladder.asked)
        self.beside: np.ndarray | None = None  # the linear model's answers out of fold

    def fit(self) -> None:
        """Learn those of the ladder's rungs from all rows, as was chosen."""
        if "linear" in self.ladder.rungs:
            n = ROWS["linear"]
            x, weight = (
                self.design.linear(taken(self.given, slice(n)), self.ladder.bins, self.ladder.terms),
                self._weight(slice(n)),
            )
            target, strength = self._target(self.y[:n], self.ladder.scales["linear"]), self.ladder.how["strength"]
            w, b = self.asked.solve(x, target, strength, weight)
            self.ladder.linear = Straight(w.astype(np.float32), b.astype(np.float32))
        if "kernel" in self.ladder.rungs:
            seen = self.design.straight(self.given)
            target, how = self._target(self.y, self.ladder.scales["kernel"]), self.ladder.how
            self.ladder.kernel = fit_kernel(seen, how["kernel width"])
            curved = self.ladder.kernel(seen)
            self.ladder.curve = Straight(*self.asked.solve(curved, target, how["kernel strength"], self.weight))
        if "trees" in self.ladder.rungs or "forest" in self.ladder.rungs:
            x, ids = self.design.dense(self.given), self.design.many(self.given)
            target = self._target(self.y, self.ladder.scales["trees"])
            whole, self.ladder.encoded = encoded(x, ids, target, self.asked, self.seed)
            there = np.unique(target) if isinstance(self.asked, Classes) else np.zeros(0, np.int64)
            self.ladder.classes = there.astype(int).tolist()
        if "trees" in self.ladder.rungs:
            rounds = int(self.ladder.how["rounds"])
            models = list(self._models(whole, target, self.weight, rounds))
            self.ladder.trees = [kept(model, rounds) for model in models]
        if "forest" in self.ladder.rungs:
            leaf = int(self.ladder.how["leaf"])
            self.ladder.forest = self._scattered(whole, target, self.weight, leaf)

    def _weight(self, rows: Any) -> np.ndarray | None:
        return None if self.weight is None else self.weight[rows]

    # -- the linear model

    def linear(self) -> Tried | None:
        """Find the strength, whether numbers stand in bins too, and the scale; None where that would take too long."""
        n, best = ROWS["linear"], None
        given, y, folds = taken(self.given, slice(n)), self.y[:n], self.folds[:n]
        blocks, start = self.design.blocks(given, True, TERMS), 10.0 if self.design.words else 1.0
        found: list[tuple[bool, tuple[str, ...], Callable[[float], Tried], Tried]] = []
        for bins, terms in self._readings():
            x = chosen(blocks, bins, terms)
            work = 2.0 * x.nnz * self.asked.count * 100 * (folds.max() + 1) * 4
            if x.shape[1] == 0 or work > 20 * WORK:
                continue
            for scale in self._scales():
                score: Callable[[float], Tried] = partial(self._straight, x, y, folds, scale, work > WORK)
                found.append((bins, terms, score, score(start)))
                self.ladder.how["single"] = max(self.ladder.how.get("single", 0.0), float(work > WORK))
        found.sort(key=lambda one: one[3].loss)
        for bins, terms, at, first in found:
            if terms != found[0][1]:
                continue  # how texts are read is decided at one strength
            strength, tried = _climb(at, start, first)
            if best is None or tried.loss < best.loss:
                best, self.ladder.bins, self.ladder.terms = tried, bins, [*terms]
                self.ladder.scales["linear"], self.ladder.how["strength"] = tried.scale, strength
        if best is None:
            return None
        self.beside = np.full((len(self.y), self.asked.count), np.nan)
        self.beside[: len(y)] = best.answers
        return best._replace(answers=self.beside)

    def _straight(self, x: Any, y: np.ndarray, folds: np.ndarray, scale: Scale, single: bool, strength: float) -> Tried:
        z, target = np.full((len(y), self.asked.count), np.nan), self._target(y, scale)
        for train, test in splits(folds, single):
            z[test] = Straight(*self.asked.solve(x[train], target[train], strength, self._weight(train)))(x[test])
        return self._tried(z, y, scale)

    def _readings(self) -> list[tuple[bool, tuple[str, ...]]]:
        """Whether numbers stand in bins too, and what of texts is read: what is tried."""
        bent = self.design.bends
        if not self.design.words:
            return [(bins, ()) for bins in (False, True)[: 1 + bent]]
        return [(bent, terms) for terms in (TERMS[:1], TERMS[:2], TERMS, (TERMS[0], TERMS[2]))]

    # -- boosted trees

    def trees(self) -> Tried | None:
        """Find the number of rounds, and the scale; None where they are of no use."""
        x, ids = self.design.dense(self.given), self.design.many(self.given)
        if not self.asked.grown or self.design.only_texts or (x.shape[1] == 0 and ids is None):
            return None
        rounds, self.ladder.how["rate"] = self._rounds()
        folds = self.folds % 3 if self.asked.outputs > 3 else self.folds
        best = None
        for scale in self._scales():
            found: list[tuple[np.ndarray, np.ndarray]] = []  # of each fold: rows, and outputs step by step
            for train, test, whole, held, target in self._held(folds, scale, len(self.y) > MANY):
                models = self._models(whole, target, self._weight(train), rounds)
                raw = np.concatenate([kept(model, rounds).staged(held, STEPS) for model in models], 2)
                there = np.unique(target)
                found.append((test, np.stack([self.ladder.grown(z, there) for z in raw])))
                if len(found) == 1 and len(self.y) > SMALL and self._hopeless(*found[0], scale):
                    return None
            rows = np.concatenate([test for test, _ in found])
            y, w = self.y[rows], self._weight(rows)
            steps = [self.ladder.on(np.concatenate([z[i] for _, z in found]), scale) for i in range(STEPS)]
            losses = [float(np.average(self.asked.losses(self._told(z, y, w), y), weights=w)) for z in steps]
            step = int(np.argmin(losses))
            z = np.full((len(self.y), self.asked.count), np.nan)
            for test, staged in found:
                z[test] = staged[step]
            tried = self._tried(z, self.y, scale)
            if best is None or tried.loss < best.loss:
                best, self.ladder.scales["trees"] = tried, tried.scale
                self.ladder.how["rounds"] = rounds // STEPS * (step + 1)
        return best

    def _held(self, folds: np.ndarray, scale: Scale, single: bool) -> Iterator[tuple[np.ndarray, ...]]:
        """Of each fold: rows to learn from and to answer, what trees see of both, and what is asked of the first."""
        x, ids = self.design.dense(self.given), self.design.many(self.given)
        target = self._target(self.y, scale)
        for train, test in splits(folds, single):
            own = None if ids is None else ids[train]
            whole, means = encoded(x[train], own, target[train], self.asked, self.seed)
            yield train, test, whole, with_means(x[test], None if ids is None else ids[test], means), target[train]

    def _rounds(self) -> tuple[int, float]:
        """How many at most, a multiple of STEPS, and the rate of learning: each round grows a tree an output."""
        trees = 240 if len(self.y) <= MANY else 120
        rounds = max(trees // max(self.asked.outputs // 2, 1), 40)
        return rounds // STEPS * STEPS, 0.06 if self.asked.outputs <= 2 else 0.1

    def _models(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, rounds: int) -> Iterator[Any]:
        """Grown models, of labels and quantiles one each."""
        how: dict[str, Any] = {"rounds": rounds, "rate": self.ladder.how["rate"], "seed": self.seed}
        if isinstance(self.asked, Quantiles):
            for level in self.asked.levels:
                yield grow(x, y, weight, classes=0, level=float(level), **how)
            return
        if not isinstance(self.asked, Labels):
            yield grow(x, y, weight, classes=len(np.unique(y)) if isinstance(self.asked, Classes) else 0, **how)
            return
        for k in range(self.asked.count):
            rows = np.flatnonzero(y[:, k] != -100)
            some = y[rows, k] if len(np.unique(y[rows, k])) == 2 else None
            if some is None:  # always the same: as likely as the prior says, which no tree changes
                some, x_ = np.asarray([0, 1] * len(self.y)), np.zeros((2 * len(self.y), x.shape[1]), np.float32)
                yield grow(x_, some, None, classes=2, **how)
            else:
                w = None if weight is None else weight[rows]
                yield grow(x[rows], some, w, classes=2, **how)

    def _hopeless(self, test: np.ndarray, staged: np.ndarray, scale: Scale) -> bool:
        """Whether trees of one fold say next to nothing that the linear model does not."""
        if self.beside is None:
            return False
        here = ~np.isnan(self.beside[test]).any(1)
        y, linear = self.y[test][here], self.beside[test][here]
        if not len(y):
            return False
        w = self._weight(test[here])
        base = np.average(self.asked.losses(linear, y), weights=w)
        for z in staged:
            trees = self.ladder.on(z[here], scale)
            mixed = self.asked.mixed(self.asked.mix([linear, trees], y, w), [linear, trees])
            if np.average(self.asked.losses(mixed, y), weights=w) <= HOPELESS * base:
                return False
        return True

    # -- of few rows

    def kernel(self) -> Tried | None:
        """A linear model on a kernel's features: find its width, strength and scale; None of many rows."""
        if len(self.y) > SMALL or self.design.only_texts:
            return None
        seen, best = self.design.straight(self.given), None
        if not seen.var(0).any():
            return None
        for width in WIDTHS:
            curved = fit_kernel(seen, width)(seen)
            for scale in self._scales():
                score: Callable[[float], Tried] = partial(self._straight, curved, self.y, self.folds, scale, False)
                strength, tried = _climb(score, 1.0, score(1.0))
                if best is None or tried.loss < best.loss:
                    best, self.ladder.scales["kernel"] = tried, tried.scale
                    self.ladder.how |= {"kernel width": width, "kernel strength": strength}
        return best

    def forest(self) -> Tried | None:
        """Trees grown at random, on the scale of the boosted ones: find the size of their leaves; None of many rows."""
        scale, best = self.ladder.scales.get("trees", Scale()), None
        if "rounds" not in self.ladder.how or len(self.y) > SMALL or isinstance(self.asked, (Labels, Quantiles)):
            return None
        for leaf in LEAVES:
            z = np.full((len(self.y), self.asked.count), np.nan)
            for train, test, whole, held, target in self._held(self.folds, scale, False):
                raw = self._scattered(whole, target, self._weight(train), leaf)(held)
                z[test] = self.ladder.shared(raw, np.unique(target))
            tried = self._tried(z, self.y, scale)
            if best is None or tried.loss < best.loss:
                best, self.ladder.scales["forest"], self.ladder.how["leaf"] = tried, tried.scale, leaf
        return best

    def _scattered(self, x: np.ndarray, y: np.ndarray, weight: np.ndarray | None, leaf: int) -> Trees:
        classes = len(np.unique(y)) if isinstance(self.asked, Classes) else 0
        return scattered(x, y, weight, classes=classes, leaf=leaf, seed=self.seed)

    # -- the scale of a number

    def _scales(self) -> list[Scale]:
        """Those that are worth trying: the logarithm of what is never below nothing, and has a long tail."""
        if not isinstance(self.asked, Number) or self.ladder.lowest is None:
            return [Scale()]
        own = self.ladder.own(self.y)
        centred = own - own.mean()
        skew = float((centred**3).mean() / max((centred**2).mean(), 1e-300) ** 1.5)
        shift = 0.0 if own.min() > 0 else float(np.median(own[own > 0])) / 2 if (own > 0).any() else 1.0
        return [Scale(), Scale("logarithm", shift)] if skew > 0.7 else [Scale()]

    def _target(self, y: np.ndarray, scale: Scale) -> np.ndarray:
        return scale.to(self.ladder.own(y)) if isinstance(self.asked, Number) else y

    def _told(self, z: np.ndarray, y: np.ndarray, w: np.ndarray | None) -> np.ndarray:
        """Answers as they count in a mix: those of classes at their best temperature, where rows are few enough."""
        if not isinstance(self.asked, Classes) or len(y) > MANY:
            return z
        return self.asked.mixed(self.asked.mix([z], y, w), [z])

    def _tried(self, z: np.ndarray, y: np.ndarray, scale: Scale) -> Tried:
        """Outputs out of fold as answers, at their best temperature or factor."""
        there = ~np.isnan(z).any(1)
        w = self._weight(slice(len(y)))
        w = None if w is None else w[there]
        if scale.name != "own" and not isinstance(self.asked, Quantiles):  # the logarithm's quantiles are the number's
            guess = np.exp(np.clip(z[there, 0], -60, 60))
            counted = guess if w is None else guess * w
            factor = float((self.ladder.own(y[there]) + scale.shift) @ counted / max(guess @ counted, 1e-300))
            scale = Scale(scale.name, scale.shift, float(np.clip(factor, 0.25, 4.0)))
        answers = np.full(z.shape, np.nan)
        found = self.ladder.on(z[there], scale)
        answers[there] = found
        best = self.asked.mixed(self.asked.mix([found], y[there], w), [found])
        return Tried(float(np.average(self.asked.losses(best, y[there]), weights=w)), answers, scale)


def _climb(score: Callable[[float], Tried], start: float, first: Tried) -> tuple[float, Tried]:
    """The strength with the lowest loss, and what `score` gave for it: by tens from `start` (which gave `first`), while
    it gets better."""
    tried = {start: first}
    for step in (10.0, 0.1):
        at = start
        while STRENGTHS[0] <= at * step <= STRENGTHS[1]:
            before, at = tried[at].loss, at * step
            tried[at] = score(at)
            if tried[at].loss >= BETTER * before:
                break
        if at not in (start, start * step):
            break  # it got better this way
    least = min(one.loss for one in tried.values())
    best = min((s for s in tried if tried[s].loss <= least / BETTER), key=lambda s: abs(np.log(s / start)))
    return best, tried[best]
