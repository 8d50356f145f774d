"""A small real model on synthetic pictures, as a job for the trainer; `run` trains it in another process."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from plait.core.block import Attention, Block, DropPath, FeedForward, Pre, Stack
from plait.core.init import initialise, trunc_normal
from plait.core.tokens import Tokens, mean
from plait.train.loop import History, Plan, train
from plait.train.optim import whole

WIDTH, ROWS, STEPS = 32, 10, 6


class Toy(nn.Module):
    """Patches of 16 x 16 pictures through two blocks; with `noise`, stochastic depth and noise from the step's
    generator."""

    scheme = {nn.Linear: trunc_normal}

    def __init__(self, noise: float, classes: int = 4):
        super().__init__()
        self.noise = noise
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)

        # No bias on keys: its gradient is zero but for rounding, which Adam blows up to the size of a step.
        def block() -> Block:
            mix = Pre(nn.LayerNorm(WIDTH), Attention(WIDTH, 4, qkv_bias=False), DropPath(noise))
            return Block(mix, Pre(nn.LayerNorm(WIDTH), FeedForward(WIDTH, 2 * WIDTH, dropout=noise), DropPath(noise)))

        self.stack = Stack(block(), block())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, classes)
        self.spare = nn.Linear(WIDTH, 2)  # a part that this task has no use for

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(mean(self.stack(Tokens(self.patches(x).flatten(2).mT)))))

    def forward(self, batch: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = batch["image"]
        x = x + self.noise * torch.randn(x.shape, generator=generator)
        y = self.logits(x)
        return dict(entropy=nn.functional.cross_entropy(y, batch["target"]), size=0.01 * y.square().mean())


class Memory(nn.Module):
    """What a method keeps between steps: a momentum copy of the head and a ring of past sums."""

    def __init__(self, head: nn.Linear):
        super().__init__()
        self.register_buffer("teacher", head.weight.detach().clone())
        self.register_buffer("queue", torch.zeros(7))
        self.register_buffer("at", torch.zeros(1, dtype=torch.int64))


class ToyJob:
    """`init` seeds the weights, `seed` the data. `bad_step`: the batch of this step holds numbers whose loss overflows.
    `delay`: seconds that each step takes at least."""

    def __init__(
        self,
        seed: int = 0,
        init: int = 0,
        noise: float = 0.1,
        rows: tuple[int, ...] = (ROWS,) * STEPS,
        bad_step: int = -1,
        delay: float = 0.0,
    ):
        with torch.device("meta"):
            model = Toy(noise)
        self.model = initialise(model, seed=init)
        self.state = Memory(self.model.head)
        self.seed, self.rows, self.bad_step, self.delay = seed, rows, bad_step, delay
        self.steps_per_epoch = len(rows)

    def batch(self, epoch: int, index: int) -> dict:
        g = torch.Generator().manual_seed(self.seed * 10**6 + epoch * 10**3 + index)
        target = torch.randint(0, 4, (self.rows[index],), generator=g)
        image = torch.randn(self.rows[index], 3, 16, 16, generator=g) + 0.3 * target[:, None, None, None]
        if epoch * self.steps_per_epoch + index == self.bad_step:
            image = image.fill_(float("inf"))
        return dict(image=image, target=target, present=dict(image=torch.ones(self.rows[index], dtype=torch.bool)))

    def batches(self, epoch: int, start: int):
        for index in range(start, self.steps_per_epoch):
            time.sleep(self.delay)
            yield self.batch(epoch, index)

    def after_step(self) -> None:
        memory = self.state
        memory.teacher.lerp_(whole(self.model.head.weight.detach()), 0.1)
        memory.queue[memory.at] = memory.teacher.sum()
        memory.at.add_(1).remainder_(7)

    def score(self, model: nn.Module) -> tuple[float, dict]:
        batches = [self.batch(10**6 + i, 0) for i in range(4)]
        right = [(model.logits(b["image"]).argmax(1) == b["target"]).float().mean().item() for b in batches]
        return sum(right) / 4, {"worst": min(right)}


def weights_hash(job: ToyJob, folder: Path) -> str:
    """The hash of a safetensors file with the model and what it keeps between steps."""
    tensors = {
        f"{part}.{k}": v for part, m in (("model", job.model), ("state", job.state)) for k, v in m.state_dict().items()
    }
    save_file(tensors, folder / "final.safetensors")
    return hashlib.sha256((folder / "final.safetensors").read_bytes()).hexdigest()


def run(folder: str, plan: Plan, job: dict, environment: dict[str, str]) -> History:
    """Train in this process, going on where an earlier one stopped; the outcome goes to files beside the
    checkpoints."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    made = ToyJob(**job)
    history = train(made, plan, folder, resume=True, device="cpu")
    if environment.get("RANK", "0") == "0":
        done = weights_hash(made, Path(folder))
        (Path(folder) / "done.txt").write_text(f"{history.stopped} {done}")
    return history


if __name__ == "__main__":
    print("begun", flush=True)
    ended = run(
        sys.argv[1], Plan(epochs=1000, batch_size=ROWS, lr=1e-3, checkpoint_seconds=1000.0), dict(delay=0.01), {}
    )
    print(f"{ended.stopped} after {len(ended.rows)} epochs", flush=True)
