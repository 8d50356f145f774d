"""One step of retrieval in two processes; run as `python -m tests.parts.gathering RANK STORE`, once for each rank.

Prints a JSON object from rank 0: for each case the loss of one process and of two, how far the gradients of two are
from those of one in relation to these, and how far they are where each process sees its own rows alone.
"""

from __future__ import annotations

import copy
import json
import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor, nn

import plait
from plait.parts.objectives import gathered
from plait.tasks.bind import bind
from plait.tasks.retrieve import MINED, PAIR, Pairs
from plait.train.parallel import Team

SIDES = ("text_0", "text_1")
SLOTS = {side: {"kind": "text", "vocab": 64} for side in SIDES}
CASES = {"in batch": (7, False), "mined": (7, True), "fewer rows than processes": (1, True)}


def texts(rows: int, g: torch.Generator) -> Tensor:
    return torch.randint(5, 64, (rows, 6), generator=g)


def batch_of(rows: int, mined: bool) -> dict:
    """Pairs of which two are alike and one lacks a side; a negative that is an answer to another row, and one that is
    not there."""
    g = torch.Generator().manual_seed(rows)
    group, there, others = torch.arange(rows), torch.ones(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool)
    wrong = torch.full((rows,), -1)
    if rows > 4:
        group[4], there[2], others[5], wrong[0] = 0, False, False, 6
    batch = {"row": 30 + torch.arange(rows), "keep": {}, "present": {SIDES[0]: torch.ones_like(there), SIDES[1]: there}}
    batch |= {side: texts(rows, g) for side in SIDES} | {"target": {PAIR: group[:, None].expand(-1, 3).clone()}}
    if mined:
        batch["negative"] = {SIDES[1]: texts(rows, g), "keep": {}, "present": {SIDES[1]: others}}
        batch["target"][MINED] = wrong
    return batch


def step(model: nn.Module, batch: dict, weight: float = 1.0) -> tuple[float, Tensor]:
    """The loss, and all gradients as one vector."""
    model.zero_grad(set_to_none=True)
    loss = sum(model(batch, torch.Generator()).values())
    (loss * weight).backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main(rank: int, store: str) -> None:
    torch.manual_seed(0)
    system = plait.create_model("sentence_encoder_toy", slots=SLOTS)
    plain = Pairs(bind(system, "embedder", SLOTS), SIDES).eval()  # dropout would differ
    alone = {name: step(plain, batch_of(*case)) for name, case in CASES.items()}  # before there are two processes
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
    team, rows = SimpleNamespace(size=2, rank=rank, device=torch.device("cpu")), {}

    def apart(found: Tensor, name: str) -> float:
        wanted = alone[name][1]
        return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))

    for name, case in CASES.items():
        part, _, weight = Team.share(team, batch_of(*case))
        loss, found = step(ddp, part, weight)
        several, gathered._several = gathered._several, lambda: False
        _, own = step(ddp, part, weight)
        gathered._several = several
        rows[name] = dict(one=alone[name][0], two=loss, apart=apart(found, name), unshared=apart(own, name))
    if rank == 0:
        print(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
