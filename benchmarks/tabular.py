"""Small tables: `plait.fit` with its defaults against scikit-learn's linear model and its histogram gradient boosting.

    python benchmarks/tabular.py

Five splits of breast cancer, wine (accuracy) and diabetes (R2), the same rows for all; prints means and the difference
to the better one.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import plait
from plait.runs.console import Console

TABLES = {
    "breast cancer": (load_breast_cancer, "classify"),
    "wine": (load_wine, "classify"),
    "diabetes": (load_diabetes, "regress"),
}


def peers(task: str) -> dict:
    if task == "classify":
        return {
            "linear": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            "boosting": HistGradientBoostingClassifier(random_state=0),
        }
    return {
        "linear": make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13))),
        "boosting": HistGradientBoostingRegressor(random_state=0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tabular"))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--tables", default=",".join(TABLES))
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    print(f"{'table':14} {'linear':>8} {'boosting':>9} {'plait':>8} {'plait - best':>13} {'seconds':>8}")
    for name in options.tables.split(","):
        load, task = TABLES[name]
        frame = load(as_frame=True).frame
        scores: dict[str, list[float]] = {"linear": [], "boosting": [], "plait": []}
        begun = time.monotonic()
        for split in range(options.splits):
            stratify = frame["target"] if task == "classify" else None
            train, test = train_test_split(frame, test_size=0.2, random_state=split, stratify=stratify)
            for peer, model in peers(task).items():
                model.fit(train.drop(columns="target"), train["target"])
                scores[peer].append(model.score(test.drop(columns="target"), test["target"]))
            folder, quiet = options.out / f"{name.replace(' ', '_')}_{split}", Console(quiet=True)
            run = plait.fit(
                train.reset_index(drop=True),
                target="target",
                out=folder,
                fractions=(0.9, 0.1, 0.0),
                seed=split,
                console=quiet,
            )
            scores["plait"].append(run.evaluate(test.reset_index(drop=True)).scores[0].value)
        mean = {k: float(np.mean(v)) for k, v in scores.items()}
        gap = mean["plait"] - max(mean["linear"], mean["boosting"])
        taken = (time.monotonic() - begun) / options.splits
        print(
            f"{name:14} {mean['linear']:8.3f} {mean['boosting']:9.3f} {mean['plait']:8.3f} {gap:+13.3f} {taken:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
