"""The one value that flows between tokenizers, towers, fusions and heads."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plait.errors import PlaitError


class Tokens(NamedTuple):
    """A batch of token sequences: a native pytree, so compile, export and FSDP2 accept it.

    x       (B, N, D) features
    keep    (B, N) bool, True = real; None: all are real
    pos     (B, N, ...) or (N, ...) coordinates of the tokens; None: not known
    grid    the sides of the grid that the tokens after the first `prefix` fill, such as (rows, columns); None: no grid
    weight  (B, N) how many source tokens each one stands for; None: one each
    prefix  count of leading special tokens (class, distillation, register)
    lengths of the sequences that lie one after another in the only row (B = 1), see `core/packing.py`; None: a sequence
            a row
    kinds   ((name, count), ...) which modality or role runs of tokens have, in order; None: not known
    context {name: Tokens or tensor} that layers may read and never change: streams to look at, "condition" (B, C),
            "allow" ((B,) N, M) bool, who may attend to whom
    memory  what a layer keeps of tokens read before, see `core/memory.py`: handed in and, grown, handed back
    losses  {name: ()} auxiliary losses; whoever takes tokens from several streams adds them up

    A layer honours each field that is set, or raises. What an inner layer gave out beside its features goes on with
    `carry`.
    """

    x: Tensor
    keep: Tensor | None = None
    pos: Tensor | None = None
    grid: tuple[int, ...] | None = None
    weight: Tensor | None = None
    prefix: int = 0
    lengths: tuple[int, ...] | None = None
    kinds: tuple[tuple[str, int], ...] | None = None
    context: dict[str, Any] | None = None
    memory: Any = None
    losses: dict[str, Tensor] | None = None

    def replace(self, **changes) -> Tokens:
        """A copy with some fields replaced; parts return this and never mutate."""
        return self._replace(**changes)

    def carry(self, inner: Tokens, x: Tensor, **changes) -> Tokens:
        """These tokens with features `x`, and the losses and the memory that an inner layer gave out."""
        return self._replace(x=x, losses=inner.losses, memory=inner.memory, **changes)

    def inside(self, x: Tensor, **fields) -> Tokens:
        """Other tokens for an inner layer, such as windows of these: features `x` and the given fields, and with them
        the losses so far, so that `carry` brings all back."""
        return Tokens(x, losses=self.losses, **fields)

    def with_losses(self, *others: Tokens) -> Tokens:
        """A copy whose losses have grown by those of other streams."""
        losses = self.losses
        for other in others:
            losses = added(losses, other.losses)
        return self._replace(losses=losses)

    def add_loss(self, name: str, value: Tensor) -> Tokens:
        """A copy whose auxiliary loss `name` has grown by `value` ()."""
        return self._replace(losses=added(self.losses, {name: value}))

    def reading(self, **streams: Any) -> Tokens:
        """A copy that gives layers more to read, by name."""
        return self._replace(context={**(self.context or {}), **streams})

    def read(self, name: str) -> Any:
        """What the context gives under `name`. Raises ValueError where it gives nothing of this name."""
        if self.context is None or name not in self.context:
            there = ", ".join(self.context or ()) or "nothing"
            raise PlaitError(
                f"this layer reads {name!r}, and the context gives {there}: add it with t.reading({name}=...)"
            )
        return self.context[name]

    def body(self) -> Tensor:
        """(B, N - prefix, D): the tokens that are not special."""
        return self.x[:, self.prefix :] if self.prefix else self.x


if hasattr(torch.utils._pytree, "_register_namedtuple"):  # so that programs with Tokens in or out can be saved
    torch.utils._pytree._register_namedtuple(Tokens, serialized_type_name="plait.core.tokens.Tokens")


def added(a: dict[str, Tensor] | None, b: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """The sum of two sets of auxiliary losses, name by name."""
    if not a or not b:
        return a or b
    return {name: a[name] + b[name] if name in a and name in b else (a if name in a else b)[name] for name in a | b}


def prepend(special: Tensor, tokens: Tokens) -> Tokens:
    """Put learned special tokens (1 or B, S, D) in front; they are always real and weigh one."""
    refuse(tokens, "lengths", "pos", why="special tokens have none: drop it first")
    batch, count = tokens.x.shape[0], special.shape[1]
    x = torch.cat([special.expand(batch, -1, -1).to(tokens.x.dtype), tokens.x], 1)  # (B, S + N, D)
    keep, weight = tokens.keep, tokens.weight
    if keep is not None:
        keep = torch.cat([keep.new_ones(batch, count), keep], 1)
    if weight is not None:
        weight = torch.cat([weight.new_ones(batch, count), weight], 1)
    kinds = None if tokens.kinds is None else (("special", count), *tokens.kinds)
    return tokens.replace(x=x, keep=keep, weight=weight, prefix=tokens.prefix + count, kinds=kinds)


def join(*streams: Tokens, kinds: tuple[str, ...] | None = None) -> Tokens:
    """One sequence of all streams' tokens (B, N1 + N2 + ..., D): a missing mask counts as all real, a missing weight as
    one each; losses add up. Which stream each token is of stands in `kinds`, where it is named here or by the streams.

    The first stream's special tokens stay special. Raises ValueError for what one sequence cannot keep: lengths,
    positions, memories, special tokens further on, a context that differs.
    """
    for t in streams:
        refuse(t, "lengths", "pos", "memory", why="one sequence of several streams has none: drop it first")
    if any(t.prefix for t in streams[1:]):
        raise PlaitError("got special tokens in a later stream, expected them in the first alone: set prefix=0 first")
    if any(t.context is not streams[0].context for t in streams):
        raise PlaitError("got streams with contexts of their own, expected one for all")
    x = torch.cat([t.x for t in streams], 1)
    keep = weight = spans = None
    if any(t.keep is not None for t in streams):
        keep = torch.cat([real(t) for t in streams], 1)
    if any(t.weight is not None for t in streams):
        weight = torch.cat([t.x.new_ones(t.x.shape[:2]) if t.weight is None else t.weight for t in streams], 1)
    if kinds is not None:
        spans = tuple((kind, t.x.shape[1]) for kind, t in zip(kinds, streams, strict=True))
    elif all(t.kinds is not None for t in streams):
        spans = tuple(span for t in streams for span in t.kinds or ())
    prefix, context = streams[0].prefix, streams[0].context
    return Tokens(x, keep=keep, weight=weight, prefix=prefix, kinds=spans, context=context).with_losses(*streams)


def apart(x: Tensor, kinds: tuple[tuple[str, int], ...], dim: int = 1) -> dict[str, Tensor]:
    """What is of each kind along `dim`: one kind's runs after one another."""
    runs: dict[str, list[Tensor]] = {}
    for (name, _), run in zip(kinds, x.split([count for _, count in kinds], dim), strict=True):
        runs.setdefault(name, []).append(run)
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts, dim) for name, parts in runs.items()}


def together(parts: dict[str, Tensor], kinds: tuple[tuple[str, int], ...], dim: int = 1) -> Tensor:
    """Undoes `apart`: what is of each kind, in the order in which `kinds` has its runs."""
    runs = {name: iter(x.split([count for kind, count in kinds if kind == name], dim)) for name, x in parts.items()}
    return torch.cat([next(runs[name]) for name, _ in kinds], dim)


def by_kind(t: Tokens) -> dict[str, Tokens]:
    """The tokens of each kind, as `kinds` says: features and masks alone. Raises ValueError where it is not known."""
    if t.kinds is None or sum(count for _, count in t.kinds) != t.x.shape[1]:
        raise PlaitError(f"got {t.x.shape[1]} tokens of kinds {t.kinds}, expected each to be of one")
    keeps = {} if t.keep is None else apart(t.keep, t.kinds)
    return {name: Tokens(x, keep=keeps.get(name)) for name, x in apart(t.x, t.kinds).items()}


def check_mask(keep: Tensor | None, rows: int, count: int | None = None, what: str = "keep") -> None:
    """Raise PlaitError unless a mask is (B, N) bool, or (B, N, M): numbers would be added, not hide."""
    if keep is None:
        return
    if keep.dtype != torch.bool:
        raise PlaitError(
            f"{what}: got {keep.dtype}, expected torch.bool, True = real: give {what}.bool() or {what} > 0"
        )
    if keep.dim() < 2 or keep.shape[0] not in (1, rows) or count is not None and keep.shape[1] != count:
        wanted = f"({rows}, {'N' if count is None else count})"
        raise PlaitError(f"{what}: got {tuple(keep.shape)}, expected {wanted}: one truth for each token of each row")


def real(t: Tokens) -> Tensor:
    """(B, N) bool: which tokens are real."""
    return t.x.new_ones(t.x.shape[:2], dtype=torch.bool) if t.keep is None else t.keep


def quiet(t: Tokens) -> Tensor:
    """(B, N, D): the features, and zeros where a token is not real: what lies there may be anything, even NaN."""
    return t.x if t.keep is None else t.x.masked_fill(~t.keep[..., None], 0.0)


def refuse(t: Tokens, *fields: str, why: str) -> None:
    """Raise ValueError where one of these fields is set: for layers that could not honour it."""
    for name in fields:
        if getattr(t, name) is not None:
            raise PlaitError(f"got tokens with {name}, expected none: {why}")


def unpacked(*streams: Tokens) -> None:
    """Raise ValueError for a packed row, where a step would mix its sequences."""
    if any(t.lengths is not None for t in streams):
        raise PlaitError(
            "got a packed row of several sequences, expected one sequence a row: unpack it first (plait.core.packing)"
        )


def whole_grid(t: Tokens) -> Tokens:
    """`t` itself, if its tokens are one for each place of their grid and all count alike; else raises ValueError."""
    refuse(t, "keep", "weight", "lengths", "memory", why="this layer is bound to the grid and reads every place alike")
    sides(t)
    return t


def sides(t: Tokens) -> tuple[int, ...]:
    """Those of the grid. Raises ValueError where there is none."""
    if t.grid is None:
        raise PlaitError("got tokens without a grid, expected one for each place: this layer is bound to the grid")
    return t.grid


def one_each_place(t: Tokens) -> None:
    """Raise PlaitError unless, after the special tokens, there is one token for each place of the grid."""
    if t.grid is None or t.x.shape[1] != t.prefix + math.prod(t.grid):
        raise PlaitError(
            f"got {t.x.shape[1]} tokens with grid {t.grid}, expected one for each place: drop or merge none before"
        )


def mean(tokens: Tokens) -> Tensor:
    """(B, D): the mean of the real tokens that are not special, by their weights; zeros where none is real. Of a packed
    row, (count, D)."""
    if tokens.lengths is not None:
        if tokens.prefix or tokens.keep is not None or tokens.weight is not None:
            raise PlaitError(
                "got a packed row with special tokens, a mask or weights, expected bare sequences: unpack it first"
            )
        return torch.stack([mean(Tokens(x)) for x in tokens.x.split(tokens.lengths, 1)], 1)[0]
    x = tokens.body()
    if tokens.keep is None and tokens.weight is None:
        return x.mean(1)
    share = x.new_ones(x.shape[:2])
    if tokens.keep is not None:
        share = share * tokens.keep[:, tokens.prefix :]
        # garbage, even NaN, must not leak
        x = x.masked_fill(~tokens.keep[:, tokens.prefix :, None], 0.0)
    if tokens.weight is not None:
        share = share * tokens.weight[:, tokens.prefix :]
    return (x * share[..., None]).sum(1) / share.sum(1, keepdim=True).clamp(min=1e-6)
