"""What plait's training loop costs over a bare PyTorch loop of the same model, batches and optimizer.

    python benchmarks/loop_overhead.py [--threads 1] [--pairs 21] [--seconds 0.5]

Each loop trains its own copy of a model in one process and they take turns, a chunk of steps each; the ratio of each
pair of neighbours is taken, so that what else the machine does falls on both. The bare loop is what one writes by hand:
forward, backward, clipping, fused
AdamW, a cosine schedule, and reading the loss every step. plait's does the same and seeds each step, checks each loss
term, reports progress, and is ready to save. The C library is told to keep freed memory for both: else one pays for
page faults that the other, by the luck of the heap, does not. `with` adds a whole checkpoint (`save` milliseconds) at
its usual interval. The last two columns are against the bare loop with AdamW's defaults: what one gets without knowing
that the fused kernel is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
from torch import nn

import plait
from plait.train import optim
from plait.train.loop import Plan, train
from plait.train.memory import keep_memory

CLASSES = 10
CLOCK = time.perf_counter
MODELS = {  # arguments of a vision transformer, rows of a batch, size of the pictures
    "small": (dict(image=(32, 32), patch=4, width=96, depth=3, heads=3), 8, 32),
    "medium": (dict(image=(64, 64), patch=8, width=192, depth=6, heads=3), 8, 64),
    "large": (dict(image=(96, 96), patch=8, width=384, depth=8, heads=6), 8, 96),
}


class Classifier(nn.Module):
    def __init__(self, arguments: dict):
        super().__init__()
        self.net = plait.create_model("vit_toy", **arguments, num_classes=CLASSES)

    def forward(self, batch: dict, generator: torch.Generator | None = None) -> dict[str, torch.Tensor]:
        return dict(entropy=nn.functional.cross_entropy(self.net(batch["image"]), batch["target"]))


def make_batches(rows: int, size: int) -> list[dict]:
    g = torch.Generator().manual_seed(0)
    made = (torch.randn(rows, 3, size, size, generator=g) for _ in range(16))
    return [dict(image=x, target=torch.randint(0, CLASSES, (rows,), generator=g)) for x in made]


class Bare:
    """A loop as written by hand; `chunk` runs some steps and gives the seconds per step."""

    def __init__(self, model: nn.Module, batches: list[dict], total: int, fused: bool | None):
        self.model, self.batches, self.count = model.train(), batches, 0
        decay = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        groups = [dict(params=decay, weight_decay=0.05), dict(params=plain, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=fused)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, total)
        self.losses: list[float] = []

    def chunk(self, steps: int) -> float:
        start = CLOCK()
        for _ in range(steps):
            batch = self.batches[self.count % len(self.batches)]
            self.optimizer.zero_grad()
            loss = self.model(batch)["entropy"]
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.losses.append(loss.item())
            self.count += 1
        return (CLOCK() - start) / steps


class Ours:
    """A job for plait's loop. Where a chunk of its steps ends, before the next batch is handed out, the other loops run
    theirs."""

    state = None

    def __init__(self, model: nn.Module, batches: list[dict], steps: int, chunks: int, others: list[Bare]):
        self.model, self.made, self.steps, self.others = model, batches, steps, others
        self.steps_per_epoch = steps * chunks + 1
        self.rounds: list[list[float]] = []  # seconds a step: ours, then the others

    def batches(self, epoch: int, start: int):
        begun = CLOCK()
        for index in range(self.steps_per_epoch):
            if index and index % self.steps == 0:
                mine = (CLOCK() - begun) / self.steps
                turn = self.others[:: 1 if len(self.rounds) % 2 else -1]
                theirs = {id(loop): loop.chunk(self.steps) for loop in turn}
                self.rounds.append([mine, *(theirs[id(loop)] for loop in self.others)])
                begun = CLOCK()
            yield self.made[index % len(self.made)]

    def update(self, now: dict) -> None:
        self.now = now

    def epoch(self, row: dict) -> None:
        pass

    def after_step(self) -> None:
        pass

    def score(self, model: nn.Module) -> tuple[float, dict]:
        return 0.0, {}


def measure(name: str, pairs: int, seconds: float) -> None:
    arguments, rows, size = MODELS[name]
    batches = make_batches(rows, size)
    trial = Bare(Classifier(arguments), batches, 100, True)
    trial.chunk(5)
    steps = max(3, round(seconds / trial.chunk(5)))
    others = [Bare(Classifier(arguments), batches, steps * (pairs + 1), fused) for fused in (True, None)]
    job = Ours(Classifier(arguments), batches, steps, pairs + 1, others)
    plan = Plan(epochs=1, batch_size=rows, lr=1e-3, checkpoint_seconds=1e9)
    with tempfile.TemporaryDirectory() as folder:
        train(job, plan, folder, progress=job, device="cpu")
        save = save_seconds(job.model, folder)
    rounds = job.rounds[1:]  # the first warms up
    ratio = sorted(mine / hand for mine, hand, _ in rounds)
    against_defaults = statistics.median(mine / defaults for mine, _, defaults in rounds)
    mine, hand, defaults = (1e3 * statistics.median(column) for column in zip(*rounds))
    middle = statistics.median(ratio)
    with_saves = middle + save / max(60.0, save / 0.02)
    millions = sum(p.numel() for p in job.model.parameters()) / 1e6
    print(
        f"{name:8}{millions:8.1f} M{hand:10.2f}{mine:10.2f}{middle:9.3f} [{ratio[0]:.3f}, {ratio[-1]:.3f}]"
        f"{1e3 * save:9.0f}{with_saves:9.3f}{defaults:10.2f}{against_defaults:9.3f}",
        flush=True,
    )


def save_seconds(model: nn.Module, folder: str) -> float:
    """One checkpoint with everything in it: weights, optimizer, average, best."""
    from plait.train import checkpoint

    optimizer = optim.adamw(model, 1e-3, 0.05)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = model.state_dict()
    start = CLOCK()
    checkpoint.save(folder, dict(model=state, optimizer=optim.flat_state(optimizer), average=state, best=state), {})
    return CLOCK() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a chunk")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument(
        "--cpu-time", action="store_true", help="count this process's CPU seconds: for a machine that others use too"
    )
    options = parser.parse_args()
    if options.cpu_time:
        global CLOCK
        CLOCK = time.process_time
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_memory()
    print(
        f"{options.threads} threads, medians of {options.pairs} pairs of chunks of {options.seconds:g} s; "
        "milliseconds a step"
    )
    heads = {
        "weights": 10,
        "by hand": 10,
        "plait": 10,
        "ratio [all pairs]": 25,
        "save": 9,
        "with": 9,
        "defaults": 10,
        " ratio": 9,
    }
    print(f"{'model':8}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for name in options.models:
        measure(name, options.pairs, options.seconds)


if __name__ == "__main__":
    main()
