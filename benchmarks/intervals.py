"""Do intervals hold the truth as often as they are asked to, and are probabilities what they say? Small tables, many
splits.

    python benchmarks/intervals.py --markdown docs/measured/intervals.md

Ten tables of scikit-learn and statsmodels (`pip install statsmodels`, which only this needs) are cut in four at random,
20 times: half to train on, a quarter to watch, a quarter to ask. Fast settings: the smallest size, two epochs, no
simple models beneath. Told are the share of the asked rows whose number lies in its interval of 90%, the half width of
that share's own 95% interval over the splits, and the width of the intervals beside that of the middle 90% of all
numbers.

Of classes: the calibration error of 15 bins (ECE) on the asked rows, five splits together, with what is learnt of the
rows that watch and without it, and that of labels that are drawn from the told probabilities, which is what is left of
it where nothing is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets

import plait
from plait.evaluate.chosen import CALIBRATION
from plait.runs.console import Console

FAST = {"system": "auto_toy", "epochs": 2, "precision": "fp32", "no_ladder": True, "console": Console(quiet=True)}


def of_statsmodels(name: str, target: str, most: int = 1500) -> tuple[pd.DataFrame, str]:
    import statsmodels.datasets as theirs

    frame = getattr(theirs, name).load_pandas().data.dropna().reset_index(drop=True)
    return frame.sample(min(most, len(frame)), random_state=0).reset_index(drop=True).astype(float), target


def of_sklearn(load, **how) -> tuple[pd.DataFrame, str]:
    x, y = load(return_X_y=True, **how) if "n_samples" not in how else load(**how)
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])]).assign(target=y), "target"


NUMBERS = {
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
CLASSES = {
    "digits": lambda: of_sklearn(datasets.load_digits),
    "two classes, 30% of labels wrong": lambda: of_sklearn(
        datasets.make_classification, n_samples=2000, flip_y=0.3, random_state=0
    ),
    "three moons": lambda: of_sklearn(
        datasets.make_classification, n_samples=1500, n_classes=3, n_informative=5, class_sep=0.7, random_state=1
    ),
    "affairs or none": lambda: (lambda f: f.assign(affairs=f.affairs > 0))(of_statsmodels("fair", "affairs", 3000)[0]),
}


def fitted(frame: pd.DataFrame, target: str, place: Path, seed: int, task: str) -> tuple[plait.Run, pd.DataFrame]:
    order = np.random.default_rng(seed).permutation(len(frame))
    asked, known = np.split(order, [len(frame) // 4])
    side = np.where(np.arange(len(known)) < len(frame) // 4, "val", "train")
    rows = frame.iloc[known].reset_index(drop=True).assign(side=side)
    run = plait.fit(rows, target=target, task=task, split="side", out=place, seed=seed, **FAST)
    return run, frame.iloc[asked].reset_index(drop=True)


def numbers(name: str, splits: int, place: Path) -> str:
    frame, target = NUMBERS[name]()
    held, wide = [], []
    low, high = np.quantile(frame[target], [0.05, 0.95])
    for seed in range(splits):
        run, asked = fitted(frame, target, place / f"{name.replace(' ', '_')}_{seed}", seed, "regress")
        told = run.predict(asked, interval=0.9)
        a, b = told.column("low").to_numpy(), told.column("high").to_numpy()
        held.append(np.mean((a <= asked[target]) & (asked[target] <= b)))
        wide.append(np.mean(b - a) / (high - low))
    error = 1.96 * np.std(held, ddof=1) / splits**0.5
    return f"| {name} | {len(frame):,} | {np.mean(held):.1%} ± {error:.1%} | {np.mean(wide):.2f} |"


def ece(p: np.ndarray, truth: np.ndarray) -> float:
    return CALIBRATION.value(truth, p, p.argmax(1), w=np.ones(len(p)), positive=None)


def classes(name: str, splits: int, place: Path) -> str:
    frame = CLASSES[name]()
    frame, target = frame if isinstance(frame, tuple) else (frame, "affairs")
    told: dict[str, list] = {"with": [], "without": [], "truth": []}
    for seed in range(splits):
        run, asked = fitted(frame, target, place / f"{name.replace(' ', '_')}_{seed}", seed, "classify")
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
    a, b = (ece(joined[k].astype(np.float64), joined["truth"]) for k in ("with", "without"))
    return f"| {name} | {len(frame):,} | {a:.3f} | {b:.3f} | {left:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/intervals"))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--tables", default=",".join([*NUMBERS, *CLASSES]))
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    shutil.rmtree(options.out, ignore_errors=True)
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    wanted = [name for name in (*NUMBERS, *CLASSES) if name in options.tables]
    say(f"| numbers, {options.splits} splits each | rows | held by intervals of 90% | width |\n|---|--:|--:|--:|")
    for name in [n for n in wanted if n in NUMBERS]:
        say(numbers(name, options.splits, options.out))
    say("\n| classes | rows | ECE | uncalibrated | of labels drawn from what is told |\n|---|--:|--:|--:|--:|")
    for name in [n for n in wanted if n in CLASSES]:
        say(classes(name, options.splits // 4, options.out))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
