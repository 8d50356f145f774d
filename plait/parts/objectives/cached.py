"""Gradients of a loss over a whole batch by pieces of it. Gao, Zhang, Han, Callan, 2021 (GradCache). arXiv:2101.06983.

A contrastive loss compares each row with all others, so that a batch cannot be halved and its gradients added. But rows
meet in their vectors alone: a first pass computes these and keeps nothing else, the loss over all of them says what
each vector's gradient is, and a second pass, piece by piece, hands it on to the weights. Both passes draw the same
random numbers. So the memory is that of a piece, whatever the batch (as in BASIC, arXiv:2111.10050).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from plait.core.batches import count_rows, some_rows
from plait.errors import PlaitError, UsageError

Read = Callable[[dict], dict[str, Tensor]]  # some rows -> what is known of each, by name (b, ...)


def cached(read: Read, batch: dict, size: int | None, model: nn.Module) -> dict[str, Tensor]:
    """`read(batch)`, computed `size` rows at a time and again, with a graph, when its gradients are asked for.

    read: what it says of a row must depend on no other row. model: whose parameters it uses; they get gradients, which
    the caller's loss may use beside what is read. A batch of at most `size` rows is read at once, and so is any without
    a size. Gradients of gradients are not known. Raises UsageError for a model in training that norms whole batches.
    """
    rows = count_rows(batch)
    if size is None or rows <= size:
        return read(batch)
    if not torch.is_grad_enabled():
        return _joined([read(piece) for piece in _pieces(batch, rows, size)])
    apart(model)
    names: list[str] = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = _Cached.apply(read, _pieces(batch, rows, size), names, *parameters)
    return dict(zip(names, found, strict=True))


def apart(model: nn.Module) -> None:
    """Raise UsageError where, in training, what is said of a row depends on others beside it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise UsageError(
                f"micro_batch: {name} is a {type(module).__name__}, which norms each row by its whole batch, and a "
                "piece of it is another batch: leave micro_batch out, or take a system without batch norms"
            )


def _pieces(batch: dict, rows: int, size: int) -> list[dict]:
    return [some_rows(batch, slice(i, i + size)) for i in range(0, rows, size)]


def _joined(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


class _Cached(torch.autograd.Function):
    """(read, pieces, names, *parameters) -> what is read of all pieces, tensor by tensor; `names` is filled."""

    @staticmethod
    def forward(ctx: Any, read: Read, pieces: list[dict], names: list[str], *parameters: Tensor) -> tuple[Tensor, ...]:
        device = parameters[0].device
        ctx.read, ctx.pieces, ctx.names, ctx.device, ctx.casts = read, pieces, names, device, _casts(device)
        ctx.states, found = [], []
        for piece in pieces[:-1]:
            ctx.states.append(_drawn(device))
            found.append(read(piece))
        torch.clear_autocast_cache()  # of weights cast without a graph, which not every torch knows from others
        with torch.enable_grad():  # the last piece's graph is there when gradients come
            ctx.last = read(pieces[-1])
        found.append({name: x.detach() for name, x in ctx.last.items()})
        joined = _joined(found)
        names += joined
        ctx.save_for_backward(*parameters)
        ctx.mark_non_differentiable(*(x for x in joined.values() if not x.is_floating_point()))
        return tuple(joined.values())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.states is None:
            raise PlaitError("got gradients of one cached batch twice, expected once: each needs a forward of its own")
        parameters, sums = ctx.saved_tensors, _Sums(len(ctx.saved_tensors))
        size, states, now = count_rows(ctx.pieces[0]), ctx.states, _drawn(ctx.device)
        ctx.states = None
        for i in reversed(range(len(ctx.pieces))):
            found, ctx.last = ctx.last, None
            if found is None:
                _draw(states[i], ctx.device)
                with torch.enable_grad(), torch.autocast(ctx.device.type, cache_enabled=False, **ctx.casts):
                    found = ctx.read(ctx.pieces[i])
            learnt = [(found[name], g[i * size : (i + 1) * size]) for name, g in zip(ctx.names, grads)
                      if found[name].requires_grad]  # fmt: skip
            del found
            if learnt:
                outputs, given = zip(*learnt)
                del learnt
                sums.add(torch.autograd.grad(outputs, parameters, given, allow_unused=True))
                del outputs
        _draw(now, ctx.device)
        return None, None, None, *sums.found


class _Sums:
    """Gradients of the pieces, added up. The first of a tensor may share its memory, and is not changed in place."""

    def __init__(self, count: int):
        self.found: list[Tensor | None] = [None] * count
        self.own = [False] * count

    def add(self, more: tuple[Tensor | None, ...]) -> None:
        for i, g in enumerate(more):
            held = self.found[i]
            if held is None or g is None:
                self.found[i] = g if held is None else held
            else:
                self.found[i] = held.add_(g) if self.own[i] else held + g
                self.own[i] = True


def _casts(device: torch.device) -> dict[str, Any]:
    return dict(enabled=torch.is_autocast_enabled(device.type), dtype=torch.get_autocast_dtype(device.type))


def _drawn(device: torch.device) -> list[Tensor]:
    """The global random states, of the CPU and of the device."""
    if device.type == "cpu":
        return [torch.get_rng_state()]
    return [torch.get_rng_state(), torch.get_device_module(device).get_rng_state()]


def _draw(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])
