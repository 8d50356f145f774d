"""What a policy earns that was learnt from trajectories of mixed quality, and whether it gets what it is asked for.

Run: python benchmarks/act.py [--world NAME] [--episodes N] [--epochs N] [--system NAME]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import plait
from plait.data.worlds import WORLDS, returns_of, trajectories
from plait.evaluate.intervals import number
from plait.evaluate.metrics import regression
from plait.tasks.act import Actor

ASKED, EACH = 8, 32  # returns asked for, and episodes of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, action="append")
    parser.add_argument("--episodes", type=int, default=1000, help="to learn from")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--system", default="decision_transformer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.world or WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            table = trajectories(folder, name, episodes=options.episodes)
            run = plait.fit(
                table,
                task="act",
                system=options.system,
                epochs=options.epochs,
                precision="fp32",
                out=Path(folder) / "run",
            )
        tell(name, run.model)


def tell(name: str, model: Actor) -> None:
    """Asked and got, in episodes that no score of the run was taken from."""
    world, levels = WORLDS[name], model.levels.double().numpy()
    asked = np.repeat(levels, EACH)
    got = model.earned(name, asked, seed=100)
    best, chance = (returns_of(world, who, 500, seed=100).mean() for who in (world.expert, world.chance))
    print(f"{name}: chance {number(chance)}, the data {number(float(model.usual))}, the expert {number(best)}")
    for level in levels:
        print(f"  asked {level:7.2f}   got {got[asked == level].mean():7.2f}  +- {got[asked == level].std():.2f}")
    most = got[asked == levels[-1]].mean()
    print(
        f"  asked for the most: {most / best:.3f} of the expert's, {number(most - float(model.usual))} above the data's"
    )
    print(f"  {regression(asked, got)[-1]} between asked and got, episode by episode")


if __name__ == "__main__":
    main()
