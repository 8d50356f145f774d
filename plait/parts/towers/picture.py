"""A plain ViT that gives all of its tokens, the picture's side of systems of several modalities."""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.block import FeedForward, Make, Stack
from plait.core.reading import read_at
from plait.core.tokens import Tokens
from plait.parts.tokenizers.patch_embed import PatchEmbed
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.towers.encoder import pre_norm_blocks


class PictureTower(nn.Module):
    """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first, all normed.

    image: the (H, W) that positions are learned for. before: one more norm before the layers, and patches without a
    bias, as in CLIP (arXiv:2103.00020). hidden: the feed-forward's width, 4 D unless given. norm, feed: as in
    `pre_norm_blocks`.
    """

    def __init__(
        self, image: tuple[int, int], patch: int, width: int, depth: int, heads: int, hidden: int | None = None,
        *, before: bool = False, norm: Make = nn.LayerNorm, feed: Make = FeedForward,
    ):  # fmt: skip
        super().__init__()
        grid = (image[0] // patch, image[1] // patch)
        self.patch_embed = PatchEmbed(PatchTokens(width, patch, bias=not before), grid, width)
        self.before = norm(width) if before else nn.Identity()
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, hidden or 4 * width, norm=norm, feed=feed))
        self.norm = norm(width)

    def tokens(self, x: Tensor) -> Tokens:
        """As `forward`, before the last norm."""
        return self.stack(self.start(x))

    def start(self, x: Tensor) -> Tokens:
        """Tokens (B, 1 + N, D), before the first layer."""
        t = self.patch_embed(x)
        return t.replace(x=self.before(t.x))

    def read(self, x: Tensor) -> Tokens:
        """The class token of `tokens` alone (B, 1, D), whose last layer makes no other."""
        return read_at(self.stack, self.start(x), 0)

    def forward(self, x: Tensor) -> Tokens:
        t = self.tokens(x)
        return t.replace(x=self.norm(t.x))
