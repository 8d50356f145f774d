"""Models of sequences, by the benchmarks that are theirs, in small."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor, nn

import plait
from benchmarks.claims.trial import Trial
from benchmarks.claims.verdict import Rule
from benchmarks.mixture_of_mamba import LONGEST, PIXELS, VOCAB, curve
from plait.core.block import Stack
from plait.core.tokens import Tokens
from plait.data.worlds import trajectories
from plait.parts.positions.learned import SequencePositions
from plait.parts.towers.multiway import Multiway
from plait.systems.unified.mixture_of_transformers import Norm, expert

WORLD, EPISODES, EPOCHS, ROWS = "buried", 400, 12, 256


def mixture() -> Trial:
    """benchmarks/mixture_of_mamba.py: the pixels of digits, then the letters of their names."""

    def run(seed: int) -> dict[str, float]:
        return {name: sum(curve(kinds, 32, 100, seed, 100)[-1]) for name, kinds in (("mixture", 2), ("dense", 1))}

    how = "digits as 64 pixels and the letters of their names, 100 steps of 16"
    return Trial(how, "loss of the next token, pixels and letters", (Rule("mixture", "lower", "dense"),), run)


class Writer(nn.Module):
    """Ids (B, N) -> logits (B, N, V) of the next one; kinds: 2 for a mixture's layers, 1 for dense ones."""

    def __init__(self, width: int, kinds: int):
        super().__init__()
        self.kinds = ("pixels", "letters")[:kinds]
        self.words, self.places = nn.Embedding(VOCAB, width), SequencePositions(PIXELS + LONGEST, width)
        experts = ({kind: expert(width, 4, 3 * width, False) for kind in self.kinds} for _ in range(2))
        self.stack = Stack(*(Multiway(each, causal=True) for each in experts))
        self.norm, self.head = Norm(width), nn.Linear(width, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        runs = (("pixels", PIXELS), ("letters", n - PIXELS)) if len(self.kinds) == 2 else (("pixels", n),)
        return self.head(self.norm(self.stack(self.places(Tokens(self.words(ids), kinds=runs))).x))


def untied() -> Trial:
    """The same rows for transformers. The weaker modality is the one of which the dense model's loss is higher."""

    def run(seed: int) -> dict[str, float]:
        found = {name: curve(kinds, 32, 300, seed, 300, Writer)[-1] for name, kinds in (("mixture", 2), ("dense", 1))}
        weaker = found["dense"].index(max(found["dense"]))
        which = {"weaker": weaker, "other": 1 - weaker}
        return {f"{name}, {told}": both[i] for told, i in which.items() for name, both in found.items()}

    rules = tuple(Rule(f"mixture, {which}", "lower", f"dense, {which}") for which in ("weaker", "other"))
    how = "digits as 64 pixels and the letters of their names, 300 steps of 16"
    return Trial(how, "loss of the next token of the weaker modality and of the other", rules, run)


def on_the_way() -> Trial:
    """What `untied` finds at one step goes up and down by as much as the two differ: here the mean of eight steps, told
    before it was run, on seeds that nobody had looked at."""

    def run(seed: int) -> dict[str, float]:
        told = {}
        for name, kinds in (("mixture", 2), ("dense", 1)):
            pixels, letters = zip(*curve(kinds, 32, 400, 10 + seed, 50, Writer), strict=True)
            told |= {f"{name}, pixels": statistics.mean(pixels), f"{name}, letters": statistics.mean(letters)}
        return told

    rules = tuple(Rule(f"mixture, {which}", "lower", f"dense, {which}") for which in ("pixels", "letters"))
    how = "digits as 64 pixels and the letters of their names, 400 steps of 16, other seeds"
    return Trial(how, "loss of the next pixel and of the next letter, mean after each 50 steps", rules, run)


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


TRIALS = {
    "mixture_of_mamba": mixture(),
    "mixture_of_transformers": untied(),
    "mixture_of_transformers_way": on_the_way(),
    "agentic_transformer": tries(),
}
