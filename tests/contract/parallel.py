"""One step of systems' toys in two processes; run as `python -m tests.contract.parallel RANK STORE SYSTEM...`, once for
each rank.

Each rank's batch lacks other modalities. Prints a JSON object from rank 0: for each system the loss that a single
process has after a step on both batches, and the losses of each rank after the same step under DDP and under FSDP2, on
one batch that both know.
"""

from __future__ import annotations

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from plait.core.catalog import System, systems
from plait.train.parallel import shard
from tests.contract.examples import example, flatten, toy

RATE = 1e-3


def lacking(model: nn.Module, rank: int) -> dict:
    """A batch without every second slot, other ones on each rank: marked absent on rank 0, not in the batch at all on
    rank 1."""
    batch = example(model, seed=rank)
    if len(model.takes) == 1:
        return batch
    for slot in model.takes[rank::2]:
        if rank:
            del batch[slot], batch["present"][slot]
            batch["keep"].pop(slot, None)
        else:
            batch["present"][slot][:] = False
    return batch


def loss(model: nn.Module, batch: dict, system: System) -> Tensor:
    """A number that every output has a say in, through `forward` alone, which is what the wrappers wrap."""
    takes = getattr(model, "module", model).takes  # DDP has the model within
    if len(takes) == 1:
        (slot,) = takes
        flatten("logits", model(batch[slot], batch["keep"].get(slot)), out := {})
    else:
        flatten("", model(batch), out := {})
    return sum((v * torch.linspace(-1, 1, v.shape[-1])).mean() for v in out.values())


def step(model: nn.Module, *losses: Tensor) -> None:
    sum(losses).div(len(losses)).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE).step()


def everywhere(number: Tensor) -> list[float]:
    found = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(found, number.detach().clone())
    return [float(f) for f in found]


def main(rank: int, store: str, *chosen: str) -> None:
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh, rows = init_device_mesh("cpu", (2,)), {}
    for system in (systems()[name] for name in chosen):
        single = toy(system).eval()  # eval: dropout would differ
        both, known = [lacking(single, r) for r in range(2)], example(single, seed=7)
        ddp, fsdp = copy.deepcopy(single), copy.deepcopy(single)
        row = {"before": float(loss(single, known, system).detach())}
        step(single, *(loss(single, b, system) for b in both))
        row["single"] = float(loss(single, known, system).detach())

        ddp = nn.parallel.DistributedDataParallel(ddp)
        step(ddp, loss(ddp, both[rank], system))
        row["ddp"] = everywhere(loss(ddp, known, system))

        step(shard(fsdp, mesh), loss(fsdp, both[rank], system))
        row["fsdp"] = everywhere(loss(fsdp, known, system))
        rows[system.name] = row
    if rank == 0:
        print(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
