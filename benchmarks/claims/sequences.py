"""Models of sequences, by the benchmarks that are theirs, in small."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import plait
from benchmarks.claims.trial import Trial
from benchmarks.claims.verdict import Rule
from benchmarks.mixture_of_mamba import curve
from plait.data.worlds import trajectories

WORLD, EPISODES, EPOCHS, ROWS = "buried", 400, 12, 256


def mixture() -> Trial:
    """benchmarks/mixture_of_mamba.py: the pixels of digits, then the letters of their names."""

    def run(seed: int) -> dict[str, float]:
        return {name: sum(curve(kinds, 32, 100, seed, 100)[-1]) for name, kinds in (("mixture", 2), ("dense", 1))}

    how = "digits as 64 pixels and the letters of their names, 100 steps of 16"
    return Trial(how, "loss of the next token, pixels and letters", (Rule("mixture", "lower", "dense"),), run)


def tries() -> Trial:
    """benchmarks/tries.py: a treasure that nobody is told of, and three tries to find it."""

    def run(seed: int) -> dict[str, float]:
        told = {}
        with tempfile.TemporaryDirectory() as folder:
            table = trajectories(folder, WORLD, episodes=EPISODES, seed=seed)
            for system in ("decision_transformer", "agentic_transformer"):
                how = dict(epochs=EPOCHS, seed=seed, precision="fp32", lr=3e-3, out=Path(folder) / system)
                model = plait.fit(table, task="act", system=f"{system}_nano", **how).model
                found = model.tried(WORLD, np.repeat(model.levels[-1:].double().numpy(), ROWS), seed=100)
                told[system] = [float(got.mean()) for got in found]
        later = told["agentic_transformer"]
        return {"last try": later[-1], "first try": later[0], "Decision Transformer": told["decision_transformer"][-1]}

    rules = (Rule("last try", "higher", "first try"), Rule("last try", "higher", "Decision Transformer"))
    how = f"the world `{WORLD}`, {EPISODES} episodes of any quality, {EPOCHS} epochs of the nano sizes"
    return Trial(how, f"return, mean of {ROWS}", rules, run)


TRIALS = {"mixture_of_mamba": mixture(), "agentic_transformer": tries()}
