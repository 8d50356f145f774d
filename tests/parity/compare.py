"""What every parity check shares: a reference with random, perturbed weights, our model with the same, one number for
the difference.

Each module of this folder named after a system has `CASES: dict[name of a size, estimated float32 GB]` smallest first,
and `parity(name) -> Row`. `python -m tests.parity` runs every case under 4 GB and prints the table; the suite runs the
smallest ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


class Row(NamedTuple):
    """ran: what `error` is an error of: "output" of the size itself; "layers": of its full width with fewer layers, as
    `reference` says; "toy": of a small shape of the same code; "keys": nothing was run, names, shapes and counts are
    the same, and there is no error."""

    name: str
    reference: str
    parameters: int
    reference_parameters: int
    error: float
    ran: str = "output"

    @property
    def told(self) -> str:
        """The error as pages print it."""
        return told(self.error, self.ran)

    @property
    def ok(self) -> bool:
        return self.error < TOLERANCE and self.parameters == self.reference_parameters


def told(error: float | None, ran: str) -> str:
    """An error with what was run for it."""
    return "keys only" if ran == "keys" else f"{error:.0e}" + (", of a small shape" if ran == "toy" else "")


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere in eval mode: norms and biases away from ones and zeros, so that no eps or order
    hides."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.dim() <= 1:  # norm weights, biases, scales: near what they are, clearly not what they are
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
        elif float(p.abs().max()) < 1e-3:  # zero-initialised tables and projections
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.add_(0.2 * torch.randn(b.shape, generator=generator))
        if name.endswith("running_var"):
            b.mul_(1 + 0.5 * torch.rand(b.shape, generator=generator))
    return model.eval()


@contextmanager
def whole_files() -> Iterator[None]:
    """While it is entered a reference's state dict has all of its buffers, as files of older releases have them: of
    what the reference's own loader leaves out we must know the names."""
    save = nn.Module._save_to_state_dict

    def all_saved(self: nn.Module, destination: dict, prefix: str, keep_vars: bool) -> None:
        save(self, destination, prefix, keep_vars)
        if not type(self).__module__.startswith("plait."):
            kept = ((key, self._buffers[key]) for key in self._non_persistent_buffers_set)
            destination.update({prefix + key: b.detach() for key, b in kept if b is not None})

    nn.Module._save_to_state_dict = all_saved
    try:
        yield
    finally:
        nn.Module._save_to_state_dict = save


def count_whole(make: Callable[[], nn.Module]) -> int:
    """The parameters of a reference that is compared with fewer layers, counted on the whole one without storage."""
    with torch.device("meta"):
        return count(make())


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|, infinite where that is no number; shapes must agree."""
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: ours {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
    if float(theirs.std()) < 1e-6:
        raise AssertionError("the reference's output is constant: comparing it would prove nothing")
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    return error if error == error else float("inf")
