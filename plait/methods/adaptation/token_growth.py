"""TokenFormer: Rethinking Transformer Scaling with Tokenized Model Parameters. Wang et al., 2024. arXiv:2410.23168.

New here: a trained model becomes a larger one, and goes on from where it was. Each of its steps of attention to
learned tokens (`parts.mixers.pattention`) is given more of them. New keys are zeros, whose scores are zeros, and GELU
of zero is zero: nothing has changed yet, whatever the new values are, and no width has to fit another.

Differs: the length that scores are brought to is that of the pairs there were, for good. The paper's is the square root
of their number, which grows with them, and would make all scores longer at once; the public code, which also draws the
new keys at random, does not make up for that.

Measured (`benchmarks/token_growth.py`, two runs, characters of Python's help, two layers 48 wide, 400 steps): grown
four times and trained for 160 steps more, models end at losses of 2.128 and 2.100, where ones of their size from
scratch end at 2.263 and 2.304; they took 0.67 of the operations. So short a training asks for steps, not for room: the
small models end at 1.731 and 1.695 when they go on for as many operations as the grown ones. When growth pays is not
told by this.
"""

from __future__ import annotations

import torch
from torch import nn

from plait.core.surgery import Undo, swap
from plait.errors import PlaitError
from plait.parts.mixers.pattention import Pattention


def token_growth(model: nn.Module, *, factor: float = 2.0, seed: int = 0) -> Undo:
    """Every `Pattention` of `model` has `factor` times as many pairs of keys and values, and `model` answers as before.
    What grew may grow again. seed: of the new values.

    Raises ValueError for a factor that adds nothing, for a model without such steps, and for one whose keys or values
    are not plain linear layers.
    """
    draw = torch.Generator().manual_seed(seed)

    def make(old: Pattention) -> nn.Module:
        more = round(factor * old.count) - old.count
        if more < 1:
            raise PlaitError(f"factor: got {factor}, expected one that adds to {old.count} pairs, such as 2")
        return grown(old, more, draw)

    return swap(model, Pattention, make)


def grown(old: Pattention, more: int, draw: torch.Generator) -> Pattention:
    """`old` with `more` pairs behind its own; the new values are drawn as its first ones were."""
    if not all(type(layer) is nn.Linear for layer in (old.keys, old.values)):
        raise PlaitError("got keys or values with an adapter, or packed, expected plain ones: merge the adapters first")
    keys, values = old.keys.weight, old.values.weight  # (n, D), (out, n)
    stds = dict(key_std=old.key_std, value_std=old.value_std)
    new = Pattention(keys.shape[1], old.count + more, len(values), length=old.length, **stds)
    drawn = old.value_std * torch.randn(len(values), more, generator=draw, device="cpu")
    joined = torch.cat([keys, keys.new_zeros(more, keys.shape[1])]), torch.cat([values, drawn.to(values)], 1)
    for layer, weight, was in zip((new.keys, new.values), joined, (keys, values)):
        layer.weight = nn.Parameter(weight.detach(), requires_grad=was.requires_grad)
    return new
