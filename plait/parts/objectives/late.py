"""Texts of which several vectors are kept, and compared late: by their best pair (arXiv:2005.00181), or by a mean of
all pairs in which the better weigh more (arXiv:1905.01969).

What is kept of a text is one unit vector all the same: its V unit vectors of length E one after another, divided by the
root of V. Whoever has fewer repeats them, which changes neither the best pair nor such a mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.errors import PlaitError


class Late(NamedTuple):
    """How two such vectors are compared. views: V. sharpness: how much better pairs weigh, by softmax of so many times
    their cosines; infinite: the best alone counts. With one view it is the product."""

    views: int = 1
    sharpness: float = float("inf")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a (A, V E), b (B, V E) -> (A, B): from -1 to 1, all with all."""
        if self.views == 1:
            return a @ b.mT
        pairs = torch.einsum("ave,bwe->abvw", self.apart(a), self.apart(b))
        return self.told(pairs)

    def rows(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (B, V E) -> (B,): each row with its own."""
        if self.views == 1:
            return (a * b).sum(-1)
        return self.told(torch.einsum("bve,bwe->bvw", self.apart(a), self.apart(b)))

    def told(self, pairs: Tensor) -> Tensor:
        """Cosines of all pairs (..., V, W) -> (...)."""
        pairs = pairs.flatten(-2)
        if self.sharpness == float("inf"):
            return pairs.amax(-1)
        return ((self.sharpness * pairs).softmax(-1) * pairs).sum(-1)

    def apart(self, x: Tensor) -> Tensor:
        """(B, V E) -> (B, V, E), unit vectors again."""
        if x.shape[-1] % self.views:
            raise PlaitError(f"got vectors of {x.shape[-1]} numbers, expected {self.views} of one length in each")
        return x.unflatten(-1, (self.views, -1)) * self.views**0.5


PLAIN = Late()


def late(model: object) -> Late:
    """How the vectors of a model are compared: as its `late` says, or by their product."""
    return getattr(model, "late", PLAIN)


def kept(x: Tensor, views: int) -> Tensor:
    """What is kept of V vectors (B, V, E), or of one that is repeated (B, 1, E): a unit vector (B, V E)."""
    x = F.normalize(x, dim=-1).expand(-1, views, -1)
    return (x * views**-0.5).flatten(1)
