"""One process or many: placing the model, sharing out a batch, and agreeing on what to do next."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from inspect import isfunction
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plait.core.batches import count_rows, some_rows
from plait.core.block import Layer
from plait.core.roles import ROLES

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# What is asked of models beside their forward: the methods of all roles, and of those who hand on to them.
METHODS = sorted(
    {name for role in ROLES.values() for name, f in vars(role).items() if isfunction(f) and not name.startswith("_")}
    - {"forward", "frames"} | {"features", "maps", "vectors", "answer", "watched"}
)  # fmt: skip


class Team:
    """The processes of this run, one unless `accelerate launch` or `torchrun` started several.

    With several, the model is wrapped for DDP; with `accelerate launch --use_fsdp` it is sharded instead (FSDP2, a
    `Layer` at a time).
    """

    def __init__(self, device: str | torch.device | None = None):
        from accelerate import Accelerator

        launched = "LOCAL_RANK" in os.environ
        on_cpu = not torch.accelerator.is_available() if device is None else torch.device(device).type == "cpu"
        self.accelerator = Accelerator(cpu=launched and on_cpu)
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device if device is None or self.size > 1 else torch.device(device)
        self.main = self.rank == 0
        self.sharded = self.size > 1 and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        # Decisions travel as numbers on the CPU, so that no process waits for its accelerator.
        self.side = dist.new_group(backend="gloo") if self.size > 1 else None

    def place(self, model: nn.Module) -> nn.Module:
        """The model to call: `model` on its device, wrapped or sharded where there are several processes."""
        model.to(self.device)
        if self.size == 1:
            return model
        if not self.sharded:
            gpu = [self.device.index] if self.device.type == "cuda" else None
            # A task need not use every part of a system, and which it uses may differ by batch.
            return nn.parallel.DistributedDataParallel(model, device_ids=gpu, find_unused_parameters=True)
        return shard(model)

    def share(self, batch: dict) -> tuple[dict, int, float]:
        """This process's rows of `batch` on its device, how many rows the whole batch has, and the weight of this
        part's mean loss.

        Parts may differ by a row, so that the mean over processes of weight times loss is the mean over the whole
        batch. A process
        left without a row computes row 0 at weight 0: all must take part in every step.
        """
        rows = count_rows(batch)
        if self.size == 1:
            return to_device(batch, self.device), rows, 1.0
        start, stop = rows * self.rank // self.size, rows * (self.rank + 1) // self.size
        weight = (stop - start) * self.size / rows
        part = slice(start, stop) if stop > start else slice(0, 1)
        return to_device(some_rows(batch, part), self.device), rows, weight

    def agree(self, *numbers: float) -> list[float]:
        """The largest of each number over all processes."""
        if self.size == 1:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.side)
        return shared.tolist()

    def mean(self, numbers: list[float]) -> list[float]:
        """The mean of each number over all processes."""
        if self.size == 1:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(shared, group=self.side)
        return (shared / self.size).tolist()

    def same(self, value: Any) -> Any:
        """The main process's value, everywhere."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self.side)
        return box[0]


def shard(model: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """`model`, a system or what holds some, sharded in place by torch's FSDP2, a `Layer` at a time. Returns it.

    Not only calls of it gather the weights: so do the methods of the roles of each system in it (`embed`, `step`,
    `decode`, ...), `features` and `maps`, and those that hand on to them. mesh: of the processes; None: all of them.
    All processes must make the same calls.
    """
    from torch.distributed.fsdp import fully_shard  # here: it takes a while to import, and few need it

    for block in reversed([m for m in model.modules() if isinstance(m, Layer)]):  # inner layers before outer ones
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _open(model)
    return model


def _open(model: nn.Module) -> None:
    """Let methods of systems in a sharded model gather what lies outside its layers, as its forward does; within such
    a call others do not, since its end would take the weights away."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def through(_: nn.Module, method: Callable, *args: Any, **how: Any) -> Any:
        return method(*args, **how)

    def opened(method: Callable) -> Callable:
        @functools.wraps(method)
        def call(*args: Any, **how: Any) -> Any:
            if depth:
                return method(*args, **how)
            enter()
            try:
                return gathered(method, *args, **how)
            finally:
                leave()

        return call

    model.through = MethodType(through, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "through")
    gathered = cast(Callable, model.through)
    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
    systems = [m for m in model.modules() if any(isinstance(m, role) for role in ROLES.values())]
    inside = {id(system) for system in systems}
    for module in model.modules():
        if any(id(m) in inside for m in module.modules()):
            for name in METHODS:
                if callable(method := getattr(module, name, None)) and not isinstance(method, nn.Module):
                    setattr(module, name, opened(method))


def to_device(value: Any, device: torch.device) -> Any:
    """All tensors of a nested dict on `device`; anything else stays as it is."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return {k: to_device(v, device) for k, v in value.items()} if isinstance(value, dict) else value
