"""How many steps a mixture of Mambas takes to the loss of a dense one, on two modalities: handwritten digits and their
names.

    python benchmarks/mixture_of_mamba.py [--steps 240] [--seeds 3] [--width 32]

Every row is one sequence: the 64 pixels of a digit of scikit-learn's (17 levels of ink), then its name letter by
letter. Both models say the next token from all before it; both have two mixers, the same width, learning rate and
batches, and cost the same for a token; the mixture has projections for pixels and for letters. The figure is the step
at which the mixture's loss, on rows it does not train on, falls below the last of the dense one, as a share of the
steps that the dense one took; inf where it never does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from plait.core.block import Pre, Stack
from plait.core.init import initialise, torch_default
from plait.core.tokens import Tokens
from plait.parts.mixers.mamba import Layout
from plait.systems.unified.mixture_of_mamba import MambaMixture, Mixers

NAMES = "zero one two three four five six seven eight nine".split()
LETTERS = sorted(set("".join(NAMES)))
PIXELS, LONGEST, VOCAB = 64, 6, 17 + len(LETTERS) + 1


def rows() -> Tensor:
    """(1797, 70) ids: pixels 0 to 16, letters above them, the last id where a name has ended."""
    found = load_digits()
    names = [[17 + LETTERS.index(c) for c in name] + [VOCAB - 1] * (LONGEST - len(name)) for name in NAMES]
    order = np.random.default_rng(0).permutation(len(found.target))
    ids = np.concatenate([found.images.reshape(-1, PIXELS).astype(int), np.array(names)[found.target]], 1)
    return torch.tensor(ids[order])


class Model(nn.Module):
    """Ids (B, N) -> logits (B, N, V) of the next one; kinds: how many sets of projections."""

    scheme = {nn.Linear: torch_default}

    def __init__(self, width: int, kinds: int):
        super().__init__()
        self.kinds = kinds
        self.words, self.norm, self.head = (
            nn.Embedding(VOCAB, width),
            nn.RMSNorm(width, eps=1e-5),
            nn.Linear(width, VOCAB),
        )
        mixers = (Pre(nn.RMSNorm(width, eps=1e-5), MambaMixture(width, kinds)) for _ in range(2))
        self.stack = Stack(Mixers(*mixers), gives=("layout",))

    def forward(self, ids: Tensor) -> Tensor:
        runs = ((0, PIXELS), (1, ids.shape[1] - PIXELS)) if self.kinds == 2 else ((0, ids.shape[1]),)
        return self.head(self.norm(self.stack(Tokens(self.words(ids)).reading(layout=Layout(runs))).x))


def losses(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of the next pixel and of the next letter."""
    logits = model(ids[:, :-1])
    loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return loss[:, : PIXELS - 1].mean(), loss[:, PIXELS - 1 :].mean()


def curve(
    kinds: int, width: int, steps: int, seed: int, every: int, made: Callable[[int, int], nn.Module] = Model
) -> list[tuple[float, float]]:
    """(pixels, letters): the loss on rows left out, after every few steps. made(width, kinds): the model."""
    with torch.device("meta"):
        model = made(width, kinds)
    model, data, found = initialise(model, seed=seed), rows(), []
    train, test = data[:1500], data[1500:1628]
    g = torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(1, steps + 1):
        pixels, letters = losses(model, train[torch.randint(0, len(train), (16,), generator=g)])
        adam.zero_grad()
        (pixels + letters).backward()
        adam.step()
        if step % every == 0:
            with torch.inference_mode():
                found.append(tuple(float(loss) for loss in losses(model, test)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--every", type=int, default=10)
    a = parser.parse_args()
    torch.set_num_threads(1)
    shares: dict[str, list[float]] = {"pixels": [], "letters": [], "both": []}
    for seed in range(a.seeds):
        dense, mixture = (curve(kinds, a.width, a.steps, seed, a.every) for kinds in (1, 2))
        for name, read in (("pixels", lambda p: p[0]), ("letters", lambda p: p[1]), ("both", sum)):
            goal = read(dense[-1])
            at = next((i for i, pair in enumerate(mixture, 1) if read(pair) <= goal), None)
            shares[name].append(float("inf") if at is None else at / len(dense))
            print(
                f"seed {seed}  {name:8s} dense {goal:.4f}  mixture {read(mixture[-1]):.4f}  share of steps "
                f"{shares[name][-1]:.2f}",
                flush=True,
            )
    for name, found in shares.items():
        print(f"{name:8s} median share of the dense model's steps {statistics.median(found):.2f}")


if __name__ == "__main__":
    main()
