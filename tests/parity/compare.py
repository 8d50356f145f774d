"""What every parity check shares: a reference with random, perturbed weights, our model with the same, one number for
the difference.

Each module of this folder named after a system has `CASES: dict[name of a size, estimated float32 GB]` smallest first,
and `parity(name) -> Row`. `python -m tests.parity` runs every case under 4 GB and prints the table; the suite runs the
smallest ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


class Row(NamedTuple):
    name: str
    reference: str
    parameters: int
    reference_parameters: int
    error: float

    @property
    def ok(self) -> bool:
        return self.error < TOLERANCE and self.parameters == self.reference_parameters


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def perturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere in eval mode: norms and biases away from ones and zeros, so that no eps or order
    hides."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() <= 1:  # norm weights, biases, scales: near what they are, clearly not what they are
            p.add_(0.2 * noise)
        elif float(p.abs().max()) < 1e-3:  # zero-initialised tables and projections
            p.add_(0.02 * noise)
    for name, b in model.named_buffers():
        if name.endswith("running_mean"):
            b.add_(0.2 * torch.randn(b.shape, generator=generator))
        if name.endswith("running_var"):
            b.mul_(1 + 0.5 * torch.rand(b.shape, generator=generator))
    return model.eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|; shapes must agree."""
    if ours.shape != theirs.shape:
        raise AssertionError(f"shapes differ: ours {tuple(ours.shape)}, theirs {tuple(theirs.shape)}")
    if float(theirs.std()) < 1e-6:
        raise AssertionError("the reference's output is constant: comparing it would prove nothing")
    return float((ours - theirs).abs().max() / theirs.abs().max())
