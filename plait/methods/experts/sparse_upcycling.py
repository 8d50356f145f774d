"""Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints. Komatsuzaki et al., 2023. arXiv:2212.05055.

New here: a trained model goes on as a mixture of experts. Some of its feed-forward steps are copied, once for each
expert; a new router picks a few for each token. As the gates of the picked ones sum to one and all are copies, nothing
has changed yet, and training goes on from there with more to learn in.

Differs: tokens choose experts, as in V-MoE; the paper's encoders let experts choose tokens. Outside of training there
is room for all tokens, so that the answers at the start are those of the dense model. Steps after causal attention stay
as they are: tokens that compete for places would hear of later ones.

Measured (`benchmarks/experts.py`, small ViTs on 1,200 handwritten digits, three runs each): the loss on other digits is
the same before and after upcycling, to four digits. After as many steps again as there had been, a model 16 wide ends
at 0.634 where the dense one ends at 0.666, lower in every run; one 64 wide, for which the digits are few, at 0.253 as
the dense one does.
"""

from __future__ import annotations

import copy

from torch import nn

from plait.core.attend import Attend
from plait.core.block import Block, FeedForward
from plait.core.surgery import Undo, swap
from plait.errors import PlaitError
from plait.parts.experts import MixtureOfExperts


def sparse_upcycling(
    model: nn.Module, *, experts: int = 8, chosen: int = 2, capacity: float = 2.0, last: float = 0.5, seed: int = 0
) -> Undo:
    """Every second feed-forward step among the `last` share of them becomes `experts` copies, of which a token passes
    `chosen`; the last one does. capacity: places in training, in even shares. seed: of the routers.

    Raises ValueError for a model without feed-forward steps of the usual kind.
    """
    causal = {
        id(f) for block in model.modules() if isinstance(block, Block) and _causal(block) for f in block.modules()
    }
    steps = [m for m in model.modules() if type(m) is FeedForward and id(m) not in causal]
    count = max(1, round(last * len(steps)))
    picked = {id(step) for step in steps[::-1][:count:2]}

    def make(old: FeedForward) -> nn.Module | None:
        if id(old) not in picked:
            return None
        if old.drop.p:
            raise PlaitError(f"got a feed-forward step with dropout {old.drop.p}, expected none: build it without")
        return upcycled(old, experts, chosen, capacity)

    return swap(model, FeedForward, make, seed=seed)


def upcycled(old: FeedForward, experts: int, chosen: int, capacity: float) -> MixtureOfExperts:
    """A mixture of copies of `old`; the router is new."""
    hidden, width = old.up.weight.shape
    new = MixtureOfExperts(
        width, hidden, experts=experts, chosen=chosen, capacity=capacity, spare=experts / chosen, normalise=True
    )
    new.experts.act = copy.deepcopy(old.act)
    for name, layer in (("up", old.up), ("down", old.down)):
        weight, bias = layer.weight.detach().mT, layer.bias.detach()
        setattr(new.experts, name, nn.Parameter(weight.repeat(experts, 1, 1)))
        setattr(new.experts, f"{name}_bias", nn.Parameter(bias.repeat(experts, 1)))
    return new


def _causal(block: nn.Module) -> bool:
    return any(isinstance(m, Attend) and m.causal for m in block.modules())
