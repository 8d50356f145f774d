"""What every backbone of one picture has in common."""

from __future__ import annotations

from torch import Tensor, nn


class Backbone(nn.Module):
    """Pictures (B, 3, H, W) -> logits (B, K), by way of `tokens`, `pool` and `head`, which a system adds.

    With `num_classes=0` its head is `nn.Identity()` and the logits are the pooled features. classifier: beginnings of
    the keys that belong to its classes. multiple: both sides of a picture must be multiples of this; None: only the
    size that the model was made for.
    """

    takes = ("image",)
    fits: tuple[str, ...] = ()
    classifier = ("head.",)
    multiple: int | None = None

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """keep: not used; a picture has no padding."""
        return self.head(self.pool(self.tokens(x)))
