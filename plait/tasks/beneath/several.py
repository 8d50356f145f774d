"""A ladder for each of several numbers, and what all of them answer together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from plait.data.schema import Schema
from plait.tasks.beneath import learn
from plait.tasks.beneath.asked import Asked
from plait.tasks.beneath.design import Design, Parts, parts
from plait.tasks.beneath.folds import taken
from plait.tasks.beneath.ladder import Ladder, anything_in, opened, written

MOST = 12  # numbers for which ladders are learnt

Asks = Sequence[tuple[Asked, tuple[float, float]]]  # for each ladder: what is asked, and by what it was standardised


@dataclass
class Several:
    """names: of the numbers. ladders: of each; None where too few rows have the number: the network answers it."""

    names: list[str]
    ladders: list[Ladder | None]

    @property
    def network(self) -> list[tuple[float, float]]:
        """Of each, the weights of its rungs and of the network."""
        return [(0.0, 1.0) if one is None else one.network for one in self.ladders]

    @network.setter
    def network(self, weights: list[tuple[float, float]]) -> None:
        for one, weight in zip(self.ladders, weights):
            if one is not None:
                one.network = weight

    @property
    def left(self) -> float | None:
        """The most that any leaves; None where one does not know, or has no ladder."""
        each = [None if one is None else one.left for one in self.ladders]
        return None if None in each else max(share for share in each if share is not None)

    @property
    def heard(self) -> bool:
        """Whether the network has a say in any."""
        return any(b for _, b in self.network)

    @property
    def prior(self) -> np.ndarray:
        """(K,)"""
        return np.asarray([0.0 if one is None else one.prior[0] for one in self.ladders])

    @property
    def relearnt(self) -> bool:
        return any(one is not None and one.relearnt for one in self.ladders)

    @relearnt.setter
    def relearnt(self, value: bool) -> None:
        for one in self.ladders:
            if one is not None:
                one.relearnt = value

    def __call__(self, batch: dict) -> np.ndarray:
        """(n, K): what the rungs answer for a batch."""
        schema = next(one.schema for one in self.ladders if one is not None)
        return self.beneath(parts(batch, schema), anything_in(batch))

    def beneath(self, given: Parts, anything: np.ndarray) -> np.ndarray:
        """(n, K): what the rungs answer, the mean where there are none."""
        none = np.zeros((len(anything), 1))
        return self._each(lambda k, one: none if one is None else one.beneath(given, anything))

    def each(self, given: Parts, anything: np.ndarray) -> dict[str, np.ndarray]:
        """{name: (n, K)}: what is told of by itself."""
        return {"each": self.beneath(given, anything)}

    def whole(self, beneath: np.ndarray, network: np.ndarray | None) -> np.ndarray:
        """(n, K): the rungs' answers and the network's as one."""

        def of(k: int, one: Ladder | None) -> np.ndarray:
            other = None if network is None else network[:, k : k + 1]
            if one is None:
                assert other is not None
                return other
            return one.whole(beneath[:, k : k + 1], other)

        return self._each(of)

    def join(
        self, beneath: np.ndarray, network: np.ndarray, y: np.ndarray, least: float, weight: np.ndarray | None = None
    ) -> float:
        """As `Ladder.join`, of each number by the rows that have it; the surest gain."""
        return max(
            one.join(beneath[:, k : k + 1], network[:, k : k + 1], y[:, k], least, weight)
            for k, one in enumerate(self.ladders)
            if one is not None
        )

    def _each(self, of: Callable[[int, Ladder | None], np.ndarray]) -> np.ndarray:
        return np.concatenate([of(k, one) for k, one in enumerate(self.ladders)], 1)

    # -- files

    def save(self, path: Path) -> None:
        """One file; what all ladders read of rows is in it once."""
        arrays: dict[str, np.ndarray] = {}
        told: dict[str, Any] = {"several": self.names, "ladders": []}
        for k, one in enumerate(self.ladders):
            found, more = ({}, None) if one is None else one.packed()
            told["ladders"].append(more)
            arrays |= {n if n.startswith("design.") else f"{k}.{n}": a for n, a in found.items()}
        written(path, arrays, told)

    @classmethod
    def unpacked(cls, told: dict, arrays: dict[str, np.ndarray], schema: Schema) -> Several:
        """What `save` wrote. Raises what a changed file can lead to."""
        shared = {name: a for name, a in arrays.items() if name.startswith("design.")}
        ladders = []
        for k, one in enumerate(told["ladders"]):
            own = {name.split(".", 1)[1]: a for name, a in arrays.items() if name.split(".", 1)[0] == str(k)}
            ladders.append(None if one is None else Ladder.unpacked(one, shared | own, schema))
        return cls(list(told["several"]), ladders)


def read(path: Path, schema: Schema) -> Ladder | Several:
    """What `save` wrote of either. Raises DataError where the file is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            several = "several" in json.loads(file.metadata()["ladder"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError):
        several = False  # which is told below
    return opened(path, schema, Several.unpacked) if several else Ladder.read(path, schema)


def climb(
    read: learn.Reader, y: np.ndarray, asks: Asks, names: list[str], schema: Schema, seed: int,
    weight: np.ndarray | None,
) -> Ladder | Several | None:  # fmt: skip
    """`learn.climb` for what is asked, y (n, ...), or for each of several numbers, y (n, K) with NaN."""
    if len(asks) == 1:
        ((asked, unit),) = asks
        return learn.climb(read, y, asked, schema, seed, unit=unit, weight=weight)
    rows = drawn(y, asks, seed)
    if len(rows) < learn.LEAST or not (given := read(rows)):
        return None
    back = np.argsort(rows)  # in the table's order each number's rows are drawn as those of one alone
    design, rows, again = Design.fit(given, schema, seed), rows[back], partial(taken, taken(given, back))
    y, weight = y[rows], None if weight is None else weight[rows]
    ladders = [
        learn.climb(again, y[:, k], asked, schema, seed, unit=unit, weight=weight, design=design)
        for k, (asked, unit) in enumerate(asks)
    ]
    return None if all(one is None for one in ladders) else Several(names, ladders)


def drawn(y: np.ndarray, asks: Asks, seed: int) -> np.ndarray:
    """The rows that `climb` asks for."""
    return learn.drawn(_known(y, asks), seed)


def _known(y: np.ndarray, asks: Asks) -> np.ndarray:
    return np.isfinite(y).any(1) if len(asks) > 1 else asks[0][0].known(y)


def counted(y: np.ndarray, asks: Asks) -> tuple[int, int]:
    """From how many rows simple models learn, and how many have what is asked."""
    known = _known(y, asks)
    return min(int(known.sum()), max(learn.ROWS.values())), int(known.sum())


def again(ladder: Ladder | Several, read: learn.Reader, y: np.ndarray, seed: int, weight: np.ndarray | None) -> None:
    """`learn.again`, of each."""
    if isinstance(ladder, Ladder):
        return learn.again(ladder, read, y, seed, weight)
    rows = np.sort(learn.drawn(np.isfinite(y).any(1), seed))
    given, y, weight = read(rows), y[rows], None if weight is None else weight[rows]
    for k, one in enumerate(ladder.ladders):
        if one is not None:
            learn.again(one, partial(taken, given), y[:, k], seed, weight)


def out_of_fold(
    ladder: Ladder | Several, read: learn.Reader, y: np.ndarray, seed: int, weight: np.ndarray | None
) -> np.ndarray | None:
    """`learn.out_of_fold`, of each."""
    if isinstance(ladder, Ladder):
        return learn.out_of_fold(ladder, read, y, seed, weight)
    rows, found = np.flatnonzero(np.isfinite(y).any(1)), []
    if np.isfinite(y).sum(0).max() > learn.MANY:
        return None
    again, some = partial(taken, read(rows)), None if weight is None else weight[rows]
    for k, one in enumerate(ladder.ladders):
        held = np.zeros((len(rows), 1)) if one is None else learn.out_of_fold(one, again, y[rows, k], seed, some)
        if held is None:
            return None
        found.append(held)
    answers = np.full((len(y), len(found)), np.nan)
    answers[rows] = np.concatenate(found, 1)
    return answers
