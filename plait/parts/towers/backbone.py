"""What every backbone of one picture has in common."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from plait.core.tokens import Tokens, mean, one_each_place
from plait.parts.maps import to_map


class Backbone(nn.Module):
    """Pictures (B, 3, H, W) -> logits (B, K), by way of `tokens`, `pool` and `head`.

    A system adds patch_embed (pictures -> Tokens), stack, norm and head, or its own `tokens` or `pool` in place of what
    they are made of. With `num_classes=0` the head is `nn.Identity()` and the logits are the pooled features.
    classifier: beginnings of the keys that belong to its classes. multiple: both sides of a picture must be multiples
    of this; None: only the size that the model was made for. strides: pixels a place, of each map of `features`.
    beyond: its parts that these have no need of.
    """

    takes = ("image",)
    fits: tuple[str, ...] = ()
    classifier = ("head.",)
    multiple: int | None = None
    strides: tuple[int, ...] = ()
    beyond: tuple[str, ...] = ("head",)
    patch_embed: Callable[[Tensor], Tokens]
    stack: Callable[[Tokens], Tokens]
    norm: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]

    def tokens(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, S + N, D) with their grid, S special ones first, before the last norm."""
        return self.stack(self.patch_embed(x))

    def features(self, x: Tensor, keep: Tensor | None = None) -> list[tuple[Tensor, int]]:
        """[(map (B, C, H / stride, W / stride), stride)], finest first: here one map, of the last tokens, normed.

        Raises ValueError where the tokens are not one for each place of a grid.
        """
        t = self.tokens(x, keep)
        one_each_place(t)
        return [(to_map(t.replace(x=self.norm(t.x))), self.strides[-1])]

    def pool(self, t: Tokens) -> Tensor:
        """(B, D): the class token, normed; the mean of the normed tokens where there is none."""
        return self.norm(t.x[:, 0]) if t.prefix else mean(t.replace(x=self.norm(t.x)))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: not used; a picture has no padding."""
        return self.head(self.pool(self.tokens(x)))


def norm_of_mean(model: Backbone, t: Tokens) -> Tensor:
    """(B, D): the norm of the mean token. Systems that read their classes from it name it as their `pool`."""
    return model.norm(mean(t))
