"""Texts of which several vectors are kept, compared late with those of which one is: by the best of them
(arXiv:2005.00181), or by a mean in which the better weigh more (arXiv:1905.01969).

What is kept of a text is one unit vector all the same: its V unit vectors of length E one after another, divided by the
root of V. One that has a single vector repeats it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from plait.errors import PlaitError


class Late(NamedTuple):
    """How two such vectors are compared, of whichever one is the vector that is repeated. views: V. sharpness: how much
    better ones weigh, by softmax of so many times their cosines, 0 or more; infinite: the best alone counts. With one
    view it is the product. Of two that both have several, one is taken for its mean, whichever gives more."""

    views: int = 1
    sharpness: float = float("inf")

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a (A, V E), b (B, V E) -> (A, B): from -1 to 1, all with all."""
        if self.views == 1:
            return a @ b.mT
        a, b = self.apart(a), self.apart(b)
        return self.told(torch.einsum("ave,be->abv", a, b.mean(1)), torch.einsum("ae,bve->abv", a.mean(1), b))

    def rows(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (B, V E) -> (B,): each row with its own."""
        if self.views == 1:
            return (a * b).sum(-1)
        a, b = self.apart(a), self.apart(b)
        return self.told((a * b.mean(1, keepdim=True)).sum(-1), (a.mean(1, keepdim=True) * b).sum(-1))

    def told(self, one: Tensor, other: Tensor) -> Tensor:
        """Cosines (..., V) of either side's vectors with the mean of the other's -> (...). Where that is the vector
        itself these are what is asked; the others are all their mean, which is less."""
        return torch.maximum(self.best(one), self.best(other))

    def best(self, cosines: Tensor) -> Tensor:
        """(..., V) -> (...)."""
        if self.sharpness == float("inf"):
            return cosines.amax(-1)
        return ((self.sharpness * cosines).softmax(-1) * cosines).sum(-1)

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
