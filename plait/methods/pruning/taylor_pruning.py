"""Importance Estimation for Neural Network Pruning. Molchanov, Mallya, Tyree, Frosio, Kautz, 2019. arXiv:1906.10771

New here: what a part of a network is worth is what the loss would lose without it, to first order: the square of the
sum of gradient times value, read off the gradients of an ordinary backward pass. The least important part of every
layer goes, and the matrices shrink by it.

The parts are the heads of self-attention, as in Are Sixteen Heads Really Better than One (arXiv:1905.10650), and the
hidden units of feed-forward layers; each is judged by the weights through which it is heard:

    for batch in samples:
        loss(model, batch).backward()
    plait.apply_method(model, "taylor_pruning", share=0.5, by="gradients")

On one CPU thread ViT-B/16 without half of its heads and units takes 0.55 of the time and 0.51 of the room:
`benchmarks/shrinking.py`.

Differs: every layer gives the same share, so that the shapes follow from the options; all goes at once, not a little
every few steps; gradients of all samples are summed before they are squared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.block import Attention, FeedForward
from plait.core.surgery import Undo, swap, together
from plait.errors import PlaitError

CRITERIA = ("weights", "gradients")


def taylor_pruning(
    model: nn.Module, share: float = 0.5, heads: bool = True, units: bool = True, by: str = "weights"
) -> Undo:
    """The least important `share` of the heads and of the hidden units of every layer of `model` goes.

    heads, units: which of the two; one of each layer always stays. by: "gradients", those of the weights as a backward
    pass left them (`fit` has none before it begins), or "weights", their squares, which needs no data and is what the
    paper compares with.
    Raises ValueError for a model that has neither, for a share that is not within 0 and 1, for weights without
    gradients, and for layers that are no plain matrices any more, such as those with adapters.
    """
    if not 0 < share < 1:
        raise PlaitError(f"share: got {share}, expected more than 0 and less than 1")
    if by not in CRITERIA:
        raise PlaitError(f"by: got {by!r}, expected one of {', '.join(CRITERIA)}")
    there = {type(m) for m in model.modules()}
    changes = [
        lambda kind=kind, make=make: swap(model, kind, lambda old: make(old, share, by))
        for kind, make, asked in ((Attention, fewer_heads, heads), (FeedForward, fewer_units, units))
        if asked and kind in there
    ]
    if not changes:
        raise PlaitError(
            f"{type(model).__name__} has no plain attention or feed-forward layer whose "
            f"{' or '.join(['heads'] * heads + ['units'] * units) or 'parts'} could go: choose a model that has"
        )
    return together(changes)


def fewer_heads(old: Attention, share: float, by: str) -> Attention:
    """`old` without the least important of its heads."""
    if old.kv_heads != old.heads:
        raise PlaitError(f"got {old.heads} heads that share {old.kv_heads} keys, expected keys of their own")
    width, e = old.out.out_features, old.out.in_features // old.heads
    kept = most_important(plain(old.out), old.heads, share, by)
    columns = (kept[:, None] * e + torch.arange(e, device=kept.device)).flatten()
    rows = (torch.arange(3, device=kept.device)[:, None] * old.out.in_features + columns).flatten()
    new = Attention(width, len(kept), head_width=e)
    new.qkv, new.out = cut(plain(old.qkv), rows=rows), cut(old.out, columns=columns)
    new.q_norm, new.k_norm, new.rotary, new.attend = old.q_norm, old.k_norm, old.rotary, old.attend
    return new


def fewer_units(old: FeedForward, share: float, by: str) -> FeedForward:
    """`old` without the least important of its hidden units."""
    kept = most_important(plain(old.down), old.down.in_features, share, by)
    new = FeedForward(old.up.in_features, len(kept))
    new.up, new.down = cut(plain(old.up), rows=kept), cut(old.down, columns=kept)
    new.act, new.drop = old.act, old.drop
    return new


def most_important(layer: nn.Linear, count: int, share: float, by: str) -> Tensor:
    """Which of the `count` parts that `layer` reads side by side stay, in their order."""
    weight, left = layer.weight.detach(), max(1, round(count * (1 - share)))
    if weight.is_meta:
        return torch.arange(left, device="meta")
    if by == "gradients" and layer.weight.grad is None:
        raise PlaitError(
            "by=gradients: got weights without gradients, expected those of a backward pass over some samples; or take "
            "by=weights"
        )
    if by == "gradients":
        worth = (weight * layer.weight.grad).unflatten(1, (count, -1)).sum((0, 2)).square()
    else:
        worth = weight.square().unflatten(1, (count, -1)).sum((0, 2))
    return worth.argsort(stable=True, descending=True)[:left].sort().values


def plain(layer: nn.Module) -> nn.Linear:
    if type(layer) is not nn.Linear:
        raise PlaitError(f"got a {type(layer).__name__}, expected a plain linear layer: prune before other methods")
    return layer


def cut(layer: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> nn.Linear:
    """Of `layer` the outputs `rows` and the inputs `columns`, copied."""
    weight, bias = layer.weight.detach(), layer.bias
    if rows is not None:
        weight, bias = weight.index_select(0, rows), None if bias is None else bias.detach().index_select(0, rows)
    if columns is not None:
        weight = weight.index_select(1, columns)
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach(), requires_grad=layer.weight.requires_grad)
    return new
