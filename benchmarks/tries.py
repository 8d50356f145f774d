"""Whether a policy that reads its earlier tries does better with each, where nobody is told where the treasure is and
players went any way; beside one that knows nothing of its earlier tries.

Run: python benchmarks/tries.py [--episodes N] [--epochs N] [--seeds N] [--size NAME]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import plait
from plait.data.worlds import WORLDS, returns_of, trajectories
from plait.evaluate.intervals import mean_score, number

WORLD, ROWS = "buried", 512  # of how many things the policies are asked to find


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=800, help="to learn from")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", default="nano")
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = WORLDS[WORLD]
    best, chance = (returns_of(world, who, ROWS, seed=100).mean() for who in (world.expert, world.chance))
    print(f"{WORLD}: chance {number(chance)}, one who knows {number(best)}")
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            table = trajectories(folder, WORLD, episodes=options.episodes, seed=seed)
            for system in ("decision_transformer", "agentic_transformer"):
                out = Path(folder) / system
                how = dict(epochs=options.epochs, seed=seed, precision="fp32", lr=3e-3, out=out)
                model = plait.fit(table, task="act", system=f"{system}_{options.size}", **how).model
                tries = model.tried(WORLD, np.repeat(model.levels[-1:].double().numpy(), ROWS), seed=100)
                said = ", ".join(str(mean_score(f"try {n + 1}", got, "higher")) for n, got in enumerate(tries))
                print(f"  seed {seed}, {system}: the data {number(float(model.usual))}; {said}", flush=True)


if __name__ == "__main__":
    main()
