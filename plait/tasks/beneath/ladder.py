"""The ladder beneath a network: a linear model on words, characters, categories and numbers, boosted trees, and of few
rows a kernel and trees grown at random; each out of fold, and what they answer together.

Whatever a network reaches, a careful person reaches this in a minute. So the ladder is learnt first; on validation rows
the network then shows by more than noise that it adds something, or it is left out (`Ladder.join`). What is kept are
arrays: nothing is unpickled. docs/use.md tells users of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from plait.core.files import write_whole
from plait.data.schema import Schema
from plait.errors import DataError
from plait.tasks.beneath.asked import Asked, Classes, Labels, Number
from plait.tasks.beneath.design import Design, Parts, parts
from plait.tasks.beneath.kernel import Kernel
from plait.tasks.beneath.means import with_means
from plait.tasks.beneath.quantiles import Quantiles
from plait.tasks.beneath.trees import Trees

FORMAT = 2  # 1 knew neither several numbers and quantiles, nor kernels and forests


class Straight(NamedTuple):
    """A linear answer: weight (K, F), bias (K,)."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: Any) -> np.ndarray:
        return np.asarray(x @ self.weight.T) + self.bias


@dataclass
class Scale:
    """The scale on which a number was learnt: its own, or the logarithm of (value + shift), and by how much answers are
    then too low, since the mean of numbers is above that of their logarithms."""

    name: str = "own"
    shift: float = 0.0
    factor: float = 1.0

    def to(self, y: np.ndarray) -> np.ndarray:
        return y if self.name == "own" else np.log(np.maximum(y + self.shift, 1e-12))

    def back(self, z: np.ndarray) -> np.ndarray:
        return z if self.name == "own" else self.factor * np.exp(np.clip(z, -60, 60)) - self.shift


@dataclass
class Ladder:
    """Made by `plait.tasks.beneath.learn.climb`, or read from a file. rungs: the weight of each answer in their mix.
    network: the weights of that mix and of the network's own answer in the whole. told: what each reached out of
    fold."""

    schema: Schema
    asked: Asked
    design: Design
    prior: np.ndarray
    unit: tuple[float, float] = (0.0, 1.0)  # mean and spread by which numbers were standardised
    lowest: float | None = None  # numbers are never answered below
    linear: Straight | None = None
    kernel: Kernel | None = None
    curve: Straight | None = None  # on the kernel's features
    trees: list[Trees] = field(default_factory=list)  # one, or one a label
    forest: Trees | None = None
    classes: list[int] = field(default_factory=list)  # that the trees tell apart
    encoded: list[np.ndarray] = field(default_factory=list)  # of each category of many levels (levels, means)
    bins: bool = False  # the linear model reads numbers in bins too
    terms: list[str] = field(default_factory=list)  # and these of texts
    scales: dict[str, Scale] = field(default_factory=dict)
    how: dict[str, float] = field(default_factory=dict)  # strength of the linear model, rounds of the trees
    rungs: dict[str, float] = field(default_factory=dict)
    network: tuple[float, float] = (1.0, 0.0)
    told: dict[str, float] = field(default_factory=dict)
    relearnt: bool = False  # on the validation rows too

    @property
    def left(self) -> float | None:
        """What share of the loss without any input is left out of fold; None of a ladder that does not know."""
        blind = self.how.get("blind")
        return min(self.told.values()) / blind if blind else None

    @property
    def heard(self) -> bool:
        """Whether the network has a say."""
        return bool(self.network[1])

    # -- answers

    def rung(self, name: str, given: Parts) -> np.ndarray:
        """(n, K) of `linear`, `kernel`, `trees` or `forest` alone."""
        if name == "linear":
            assert self.linear is not None
            return self._found(name, self.linear(self.design.linear(given, self.bins, self.terms)))
        if name == "kernel":
            assert self.kernel is not None and self.curve is not None
            return self._found(name, self.curve(self.kernel(self.design.straight(given))))
        x, there = with_means(self.design.dense(given), self.design.many(given), self.encoded), np.asarray(self.classes)
        if name == "forest":
            assert self.forest is not None
            return self._found(name, self.shared(self.forest(x), there))
        return self._found(name, self.grown(np.concatenate([one(x) for one in self.trees], 1), there))

    def grown(self, raw: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Outputs (n, K) of boosted trees' sums, which tell the classes `there` apart."""
        return self.asked.from_trees(raw, there) if isinstance(self.asked, Classes) else raw

    def shared(self, raw: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Outputs (n, K) of a forest's leaves, which hold shares of the classes `there`."""
        return self.asked.from_shares(raw, there, self.prior) if isinstance(self.asked, Classes) else raw

    def _found(self, name: str, z: np.ndarray) -> np.ndarray:
        return self.on(z, self.scales.get(name, Scale()))

    def on(self, z: np.ndarray, scale: Scale) -> np.ndarray:
        """Outputs of a model that learnt on a scale, as answers."""
        return self.asked.normal(self._standard(scale.back(z)) if isinstance(self.asked, Number) else z)

    def _standard(self, y: np.ndarray) -> np.ndarray:
        return self._floored((y - self.unit[0]) / self.unit[1])

    def _floored(self, answers: np.ndarray) -> np.ndarray:
        return answers if self.lowest is None else np.maximum(answers, (self.lowest - self.unit[0]) / self.unit[1])

    def own(self, y: np.ndarray) -> np.ndarray:
        """Standardised numbers in the target's unit."""
        return y * self.unit[1] + self.unit[0]

    def __call__(self, batch: dict) -> np.ndarray:
        """(n, K): what the rungs answer together for a batch, the prior where nothing is given."""
        return self.beneath(parts(batch, self.schema), anything_in(batch))

    def beneath(self, given: Parts, anything: np.ndarray) -> np.ndarray:
        found = [self.rung(name, given) for name in self.rungs]
        whole = self._floored(self.asked.mixed(np.asarray(list(self.rungs.values())), found))
        return np.where(anything[:, None], whole, self.prior)

    def each(self, given: Parts, anything: np.ndarray) -> dict[str, np.ndarray]:
        """{name: (n, K)}: what each rung answers, and all together where there are several."""
        found = {name: np.where(anything[:, None], self.rung(name, given), self.prior) for name in self.rungs}
        return found | ({"both": self.beneath(given, anything)} if len(found) > 1 else {})

    def whole(self, beneath: np.ndarray, network: np.ndarray | None) -> np.ndarray:
        """(n, K): the ladder's answers and the network's (None where it has no say) as one."""
        a, b = self.network
        if network is None or b == 0:
            return beneath
        return self._floored(self.asked.mixed(np.asarray([a, b]), [beneath, self.asked.normal(network.astype(float))]))

    def join(
        self, beneath: np.ndarray, network: np.ndarray, y: np.ndarray, least: float, weight: np.ndarray | None = None
    ) -> float:
        """Find on rows that neither was trained on how much each says: `network` is set. Returns how many standard
        errors the loss is lower than the ladder's alone; below `least`, the network is left out."""
        known = self.asked.known(y)
        beneath, network, y = beneath[known], self.asked.normal(network[known].astype(np.float64)), y[known]
        w = None if weight is None else weight[known]
        weights, alone = self.asked.mix([beneath, network], y, w), self.asked.mix([beneath], y, w)
        without = self.asked.losses(self.asked.mixed(alone, [beneath]), y)  # at its own best temperature
        gain = without - self.asked.losses(self.asked.mixed(weights, [beneath, network]), y)
        sure = standard_errors(gain, w) if len(y) else 0.0
        self.network = (float(weights[0]), float(weights[1])) if sure >= least and weights[1] > 0 else (1.0, 0.0)
        return sure

    # -- files

    def save(self, path: Path) -> None:
        """One file of arrays, and the rest as JSON in its header; whole or not at all."""
        written(path, *self.packed())

    def packed(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All of it: arrays by name, and plain JSON."""
        arrays = {f"design.{k}": v for k, v in self.design.arrays.items()} | {"prior": self.prior}
        if self.linear is not None and "linear" in self.rungs:
            arrays |= {"linear.weight": self.linear.weight, "linear.bias": self.linear.bias}
        if "trees" in self.rungs:
            for i, one in enumerate(self.trees):
                arrays |= {f"trees.{i}.{name}": value for name, value in one._asdict().items()}
        if self.kernel is not None and self.curve is not None and "kernel" in self.rungs:
            for part, held in (("kernel", self.kernel), ("curve", self.curve)):
                arrays |= {f"{part}.{name}": value for name, value in held._asdict().items()}
        if self.forest is not None and "forest" in self.rungs:
            arrays |= {f"forest.{name}": value for name, value in self.forest._asdict().items()}
        if "trees" in self.rungs or "forest" in self.rungs:
            arrays |= {f"encoded.{i}": means for i, means in enumerate(self.encoded)}
        told: dict[str, Any] = {
            "asked": self.asked.name, "count": self.asked.count, "unit": self.unit,
            "lowest": self.lowest, "classes": self.classes, "bins": self.bins, "terms": self.terms, "how": self.how,
            "rungs": self.rungs, "network": self.network, "told": self.told,
            "relearnt": self.relearnt,
            "scales": {k: vars(v) for k, v in self.scales.items()}, "design": self.design.told,
        }  # fmt: skip
        if isinstance(self.asked, Quantiles):
            told["levels"] = self.asked.levels.tolist()
        return arrays, told

    @classmethod
    def read(cls, path: Path, schema: Schema) -> Ladder:
        """The ladder that `save` wrote. Raises DataError where the file is damaged."""
        return opened(path, schema, cls.unpacked)

    @classmethod
    def unpacked(cls, told: dict, arrays: dict[str, np.ndarray], schema: Schema) -> Ladder:
        """What `packed` gave. Raises what a changed file can lead to."""
        name, count = told["asked"], told["count"]
        known: dict[str, Asked] = {"classes": Classes(count), "labels": Labels(count), "number": Number()}
        asked = Quantiles(told["levels"]) if name == "quantiles" else known[name]
        design = Design(told["design"], {k[7:]: v for k, v in arrays.items() if k.startswith("design.")})
        out = cls(
            schema, asked, design, arrays["prior"], tuple(told["unit"]),
            told["lowest"], classes=told["classes"], bins=told["bins"], terms=told["terms"], how=told["how"],
            rungs=told["rungs"], network=tuple(told["network"]), told=told["told"],
            relearnt=told.get("relearnt", False),
            scales={k: Scale(**v) for k, v in told["scales"].items()},
        )  # fmt: skip
        if "linear.weight" in arrays:
            out.linear = Straight(arrays["linear.weight"], arrays["linear.bias"])
        if "curve.weight" in arrays:
            out.kernel = Kernel(*(arrays[f"kernel.{name}"] for name in Kernel._fields))
            out.curve = Straight(arrays["curve.weight"], arrays["curve.bias"])
        if "forest.roots" in arrays:
            out.forest = Trees(*(arrays[f"forest.{name}"] for name in Trees._fields))
        count = len({k.split(".")[1] for k in arrays if k.startswith("trees.")})
        out.trees = [Trees(*(arrays[f"trees.{i}.{name}"] for name in Trees._fields)) for i in range(count)]
        out.encoded = [arrays[f"encoded.{i}"] for i in range(sum(k.startswith("encoded.") for k in arrays))]
        return out


T = TypeVar("T")


def written(path: Path, arrays: dict[str, np.ndarray], told: dict[str, Any]) -> None:
    """Whole or not at all."""
    arrays = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    header = {"ladder": json.dumps({"format": FORMAT} | told)}
    write_whole(path, lambda part: save_file(arrays, part, header))


def opened(path: Path, schema: Schema, make: Callable[[dict, dict[str, np.ndarray], Schema], T]) -> T:
    """What `make` makes of a file. Raises DataError where it is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            told = json.loads(file.metadata()["ladder"])
            arrays = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
        if told["format"] > FORMAT:
            raise DataError(f"{path} was written by a newer plait: its format is {told['format']}, expected {FORMAT}")
        return make(told, arrays, schema)
    except DataError:
        raise
    except Exception as error:  # whatever a changed file can lead to
        raise DataError(f"{path} is damaged: {type(error).__name__} {error}") from error


def standard_errors(gain: np.ndarray, weight: np.ndarray | None) -> float:
    """By how many of them the mean of gains (n,) is above 0; at most 100, as a few rows may all gain alike."""
    w = np.ones(len(gain)) if weight is None else weight
    share = w / max(w.sum(), 1e-12)
    mean = float(share @ gain)
    return float(np.clip(mean / max(float(np.sqrt((share**2) @ (gain - mean) ** 2)), 1e-12), -100, 100))


def anything_in(batch: dict) -> np.ndarray:
    return np.any([p.cpu().numpy() for p in batch["present"].values()], axis=0)
