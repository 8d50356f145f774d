"""What every backbone of one picture has in common."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.tokens import Tokens, mean, one_each_place
from plait.parts.maps import to_map


class Noting(nn.Module):
    """A stack that also adds what each of its layers gives to `every`."""

    def __init__(self, stack: Stack, every: list[Tokens]):
        super().__init__()
        self.blocks, self.every = stack.blocks, every

    def forward(self, t: Tokens) -> Tokens:
        for block in self.blocks:
            t = block(t)
            self.every.append(t)
        return t


class Backbone(nn.Module):
    """Pictures (B, 3, H, W) -> logits (B, K), by way of `tokens`, `pool` and `head`.

    A system adds patch_embed (pictures -> Tokens), stack, norm and head, or its own `tokens` or `pool` in place of what
    they are made of. With `num_classes=0` the head is `nn.Identity()` and the logits are the pooled features.
    classifier: beginnings of the keys that belong to its classes. in_chans: channels of the pictures. multiple: both
    sides of a picture must be multiples of this; None: only the size that the model was made for. beyond: parts that
    `features` has no need of.
    """

    takes = ("image",)
    fits: tuple[str, ...] = ()
    classifier = ("head.",)
    in_chans = 3
    multiple: int | None = None
    beyond: tuple[str, ...] = ("head",)
    patch_embed: Callable[[Tensor], Tokens]
    stack: Callable[[Tokens], Tokens]
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, S + N, D) with their grid, S special ones first, before the last norm."""
        return self.stack(self.patch_embed(x))

    def features(self, x: Tensor, keep: Tensor | None = None, layers: tuple[int, ...] = ()) -> list[tuple[Tensor, int]]:
        """[(map (B, C, H / stride, W / stride), stride)], finest first, rounded up. layers: whose maps, by number;
        none: those that the system is for, of a plain tower that of its last tokens, normed.

        Raises PlaitError where the tokens are not one for each place of a grid.
        """
        maps = self.seen(x, layers)
        if self.multiple is None:  # one size, which its grid divides
            return [(m, x.shape[2] // m.shape[2]) for m in maps]
        own = self.strides
        strides = own if not layers else [own[n] if len(own) > 1 else own[0] for n in layers]
        return list(zip(maps, strides, strict=True))

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Pixels a place, of each map of `features`: found by running it on nothing, once."""
        training, m = self.training, self.multiple
        if m is None:  # what traces a model asks for all that it has
            raise AttributeError(f"{type(self).__name__} reads pictures of one size: its features tell their strides")
        side = -(-128 // m) * m
        with torch.no_grad():
            found = self.eval().seen(next(self.parameters()).new_zeros(1, self.in_chans, side, side))
        self.train(training)
        return tuple(round(side / x.shape[2]) for x in found)

    def seen(self, x: Tensor, layers: tuple[int, ...] = ()) -> list[Tensor]:
        """The maps (B, C, h, w) of `features`."""
        found = [self.tokens(x)] if not layers else self._after(x, layers)
        for t in found:
            one_each_place(t)
        return [to_map(t.replace(x=self.norm(t.x))) for t in found]

    def _after(self, x: Tensor, layers: tuple[int, ...]) -> list[Tokens]:
        """The tokens after these layers, by number, of the last stack."""
        every: list[Tokens] = []
        other = copy.copy(self)  # the same but for its stack
        vars(other)["_modules"] = {**self._modules, "stack": Noting(cast(Stack, self.stack), every)}
        other.tokens(x)
        return [every[n].replace(context=None) for n in layers]

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the class token, normed; the mean of the normed tokens where there is none."""
        return self.norm(t.x[:, 0]) if t.prefix else mean(t.replace(x=self.norm(t.x)))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: not used; a picture has no padding."""
        return self.head(self.pool(self.tokens(x)))


def norm_of_mean(model: Backbone, t: Tokens) -> Tensor:
    """(B, D): the norm of the mean token. Systems that read their classes from it name it as their `pool`."""
    return model.norm(mean(t))
