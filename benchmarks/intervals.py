"""Do intervals hold the truth as often as they are asked to, are probabilities what they say, and is a threshold where
it should be? Small tables, many draws.

    python benchmarks/intervals.py --markdown intervals.md

Tables are those of scikit-learn and statsmodels (`pip install statsmodels`, which only this needs). Each is cut in four
at random, anew in each draw: half to train on, a quarter to watch, and a quarter to ask, the run's test split. Each is
fitted as `plait fit` would, with the default system and simple models beneath, but for one epoch.

Of numbers: the share of the asked rows that lie in their interval of 90%, in the mean over the draws, with the standard
error of that mean, and the width of the intervals beside that of the middle 90% of all numbers. With `--quantiles` the
same of runs that answer 0.05, 0.5 and 0.95, whose intervals are as wide as the row is uncertain; beside it the width.

Of classes: the calibration error of 15 bins (ECE) on the asked rows, all draws together, with what is learnt of the
rows that watch and without it, and that of labels that are drawn from the told probabilities, which is what is left of
it where nothing is wrong.

Of a class that three rows in a hundred have: its F1 on the rows that are left where 4,000 are known, as the likeliest
answer has it, as `--metric f1` has it, and at the best threshold in hindsight.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.metrics import f1_score, precision_recall_curve

import plait
from plait.evaluate.chosen import CALIBRATION
from plait.runs.console import Console

FAST = {"system": "auto", "epochs": 1, "precision": "fp32", "console": Console(quiet=True)}
KNOWN = 4000  # rows, of a class that is rare

Made = Callable[[], tuple[pd.DataFrame, str]]


def of_statsmodels(name: str, target: str, most: int = 1500) -> tuple[pd.DataFrame, str]:
    import statsmodels.datasets as theirs

    frame = getattr(theirs, name).load_pandas().data.dropna().reset_index(drop=True)
    return frame.sample(min(most, len(frame)), random_state=0).reset_index(drop=True).astype(float), target


def of_sklearn(load, **how) -> tuple[pd.DataFrame, str]:
    x, y = load(return_X_y=True, **how) if "n_samples" not in how else load(**how)
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])]).assign(target=y), "target"


def yes_or_no(made: tuple[pd.DataFrame, str], least: float) -> tuple[pd.DataFrame, str]:
    frame, target = made
    return frame.assign(**{target: np.where(frame[target] >= least, "yes", "no")}), target


def rare(n: int) -> tuple[pd.DataFrame, str]:
    """Three in a hundred, by two numbers that tell a little."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n))
    yes = rng.random(n) < 1 / (1 + np.exp(4.1 - 0.8 * (a + b)))
    return pd.DataFrame({"a": a, "b": b, "target": np.where(yes, "yes", "no")}), "target"


NUMBERS: dict[str, Made] = {
    "diabetes": lambda: of_sklearn(datasets.load_diabetes),
    "breast cancer, texture": lambda: (
        datasets.load_breast_cancer(as_frame=True).data.iloc[:, :10],
        "mean texture",
    ),
    "friedman 1": lambda: of_sklearn(datasets.make_friedman1, n_samples=1000, noise=1.0, random_state=0),
    "friedman 3": lambda: of_sklearn(datasets.make_friedman3, n_samples=1000, noise=0.2, random_state=0),
    "engel": lambda: of_statsmodels("engel", "foodexp"),
    "star98": lambda: of_statsmodels("star98", "NABOVE"),
    "cancer": lambda: of_statsmodels("cancer", "cancer"),
    "anes96": lambda: of_statsmodels("anes96", "income"),
    "fair": lambda: of_statsmodels("fair", "affairs"),
    "randhie": lambda: of_statsmodels("randhie", "mdvis"),
}
CLASSES: dict[str, Made] = {
    "digits": lambda: of_sklearn(datasets.load_digits),
    "two classes, 30% of labels wrong": lambda: of_sklearn(
        datasets.make_classification, n_samples=2000, flip_y=0.3, random_state=0
    ),
    "three moons": lambda: of_sklearn(
        datasets.make_classification, n_samples=1500, n_classes=3, n_informative=5, class_sep=0.7, random_state=1
    ),
    "affairs or none": lambda: yes_or_no(of_statsmodels("fair", "affairs", 3000), 1e-9),
}
RARE: dict[str, Made] = {
    "two numbers, 3% yes": lambda: rare(20_000),
    "twenty numbers, 3% yes": lambda: yes_or_no(
        of_sklearn(
            datasets.make_classification, n_samples=20_000, weights=[0.97], flip_y=0.01, class_sep=0.5, random_state=0
        ),
        1,
    ),
    "visits, 13 and more": lambda: yes_or_no(of_statsmodels("randhie", "mdvis", 20_000), 13),
}


def cut(frame: pd.DataFrame, seed: int, sides: dict[str, int]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows in a random order, the first of which are on these sides, and those that are asked."""
    mixed = frame.sample(frac=1.0, random_state=seed).reset_index(drop=True)
    mixed["side"] = np.repeat([*sides, "train"], [*sides.values(), len(mixed) - sum(sides.values())])
    return mixed, mixed[mixed.side == "test"].drop(columns="side").reset_index(drop=True)


def fitted(rows: pd.DataFrame, target: str, place: Path, seed: int, task: str, **how) -> plait.Run:
    shutil.rmtree(place, ignore_errors=True)
    return plait.fit(rows, target=target, task=task, split="side", out=place, seed=seed, **FAST | how)


def numbers(name: str, draws: int, place: Path, quantiles: str | None) -> str:
    frame, target = NUMBERS[name]()
    held, wide = [], []
    low, high = np.quantile(frame[target], [0.05, 0.95])
    for seed in range(draws):
        rows, asked = cut(frame, seed, {"test": len(frame) // 4, "val": len(frame) // 4})
        told = fitted(rows, target, place, seed, "regress", quantiles=quantiles).predict(asked, interval=0.9)
        a, b = told.column("low").to_numpy(), told.column("high").to_numpy()
        held.append(np.mean((a <= asked[target]) & (asked[target] <= b)))
        wide.append(np.mean(b - a) / (high - low))
    error = np.std(held, ddof=1) / draws**0.5
    return f"| {name} | {len(frame):,} | {np.mean(held):.1%} ± {error:.1%} | {np.mean(wide):.2f} |"


def ece(p: np.ndarray, truth: np.ndarray) -> float:
    return CALIBRATION.value(truth, p.astype(np.float64), p.argmax(1), w=np.ones(len(p)), positive=None)


def classes(name: str, draws: int, place: Path) -> str:
    frame, target = CLASSES[name]()
    told: dict[str, list] = {"with": [], "without": [], "truth": []}
    for seed in range(draws):
        rows, asked = cut(frame, seed, {"test": len(frame) // 4, "val": len(frame) // 4})
        run = fitted(rows, target, place, seed, "classify")
        at = {c: i for i, c in enumerate(run.task.classes)}
        told["truth"].append(np.array([at[v] for v in asked[target]]))
        for which in ("with", "without"):
            if which == "without":
                run.task.temperature, run.task.doubt = 1.0, 0.0
            answers = run.predict(asked)
            told[which].append(np.stack([answers.column(f"p({c})").to_numpy() for c in run.task.names], 1))
    joined = {k: np.concatenate(v) for k, v in told.items()}
    rng, p = np.random.default_rng(0), joined["with"].astype(np.float64)
    drawn = [(p.cumsum(1) > rng.random((len(p), 1))).argmax(1) for _ in range(50)]
    left = np.mean([ece(p, d) for d in drawn])
    a, b = (ece(joined[k], joined["truth"]) for k in ("with", "without"))
    return f"| {name} | {len(frame):,} | {a:.3f} | {b:.3f} | {left:.3f} |"


def thresholds(name: str, draws: int, place: Path) -> str:
    frame, target = RARE[name]()
    found = []
    for seed in range(draws):
        sides = {"train": KNOWN * 8 // 10, "val": KNOWN // 10, "test": len(frame) - KNOWN}
        rows, asked = cut(frame, seed, sides)
        run = fitted(rows, target, place, seed, "classify", metric="f1", positive="yes")
        told, truth = run.predict(asked), asked[target] == "yes"
        p = told.column("p(yes)").to_numpy()
        precision, recall, _ = precision_recall_curve(truth, p)
        best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
        said = [answer == "yes" for answer in told.column(target).to_pylist()]
        found.append((f1_score(truth, p > 0.5), f1_score(truth, said), best))
    plain, tuned, best = np.mean(found, 0)
    error = np.std([best - tuned for _, tuned, best in found], ddof=1) / draws**0.5
    share = np.mean(frame[target] == "yes")
    return f"| {name} | {share:.1%} | {plain:.3f} | {tuned:.3f} | {best:.3f} | {best - tuned:.3f} ± {error:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/intervals"))
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--tables", default=",".join([*NUMBERS, *CLASSES, *RARE]), help="parts of their names")
    parser.add_argument("--quantiles", action="store_true", help="intervals of runs that answer quantiles too")
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    few, quantiles = max(options.draws // 4, 2), "0.05,0.5,0.95" if options.quantiles else None
    parts: list[tuple[dict[str, Made], str, Callable[[str], str]]] = [
        (NUMBERS, f"| numbers, {options.draws} draws each | rows | held by intervals of 90% | width |",
         lambda name: numbers(name, options.draws, options.out, quantiles)),
        (CLASSES, f"| classes, {few} draws each | rows | ECE | uncalibrated | of labels drawn from what is told |",
         lambda name: classes(name, few, options.out)),
        (RARE, f"| a rare class, {few} draws each | share | F1 of the likeliest | by `--metric f1` | best | less |",
         lambda name: thresholds(name, few, options.out)),
    ]  # fmt: skip
    wanted = [part.strip() for part in options.tables.split(",")]
    for tables, head, line in parts:
        names = [name for name in tables if any(part in name for part in wanted)]
        if names:
            say(f"\n{head}\n|---|{'--:|' * (head.count('|') - 2)}")
        for name in names:
            say(line(name))
    if options.markdown:
        options.markdown.write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
