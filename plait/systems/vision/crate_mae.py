"""Masked Completion via Structured Diffusion with White-Box Transformers. Pai et al., 2024. arXiv:2404.02446.

New here: CRATE as a masked autoencoder, whose two halves are one optimisation there and back. The encoder's layers are
CRATE's, with a larger penalty: they compress and make sparse. The decoder's undo that: each takes the code back through
a dictionary, and away from what attention to the same few subspaces gathers, since what was compressed is to spread
again. Hidden patches are not left out: a learned token stands in their place through both halves.

Differs: positions are computed for every grid, not resampled from that of 224 pixels. The published layout has a layer
between the halves and a second table of positions, which nothing reads: both are dropped. `undo=0` (`*_encoder`) is the
encoder alone, for classes: it begins with a run of `--task pretrain` by `--weights RUN/model.safetensors`, of which it
takes `--only cls --only 'stem.*' --only 'stack.*' --only 'norm.*'`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from plait.core.block import Block, Layer, Pre, Stack
from plait.core.precision import wide
from plait.core.tokens import Tokens, prepend
from plait.core.weights import Drop, Rename
from plait.errors import PlaitError
from plait.parts.presence import fill_absent
from plait.parts.tokenizers.patches import PatchTokens, patch_grid
from plait.parts.towers.backbone import Backbone
from plait.systems.generation.dit import places as grid_places
from plait.systems.vision.crate import Ista, Normed, Subspaces

Norm = partial(nn.LayerNorm, eps=1e-6)


class Sparser(Ista):
    """As CRATE's, with five times the penalty."""

    penalty = 0.5


class Undo(Layer):
    """A layer of the decoder: y - attention(y), where y is what a dictionary makes of the code. Tokens (B, N, D) -> the
    same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.feed_norm, self.dictionary = nn.LayerNorm(width), nn.Linear(width, width, bias=False)
        self.mix_norm, self.mix = nn.LayerNorm(width), Subspaces(width, heads)

    def forward(self, t: Tokens) -> Tokens:
        y = self.dictionary(self.feed_norm(t.x))
        gathered = self.mix(t.replace(x=self.mix_norm(y)))
        return t.carry(gathered, y - gathered.x)


class CRATEMAE(Backbone):
    """Pictures (B, 3, H, W), of which a share `hidden` of the patches is hidden -> the pixels of these. undo: layers of
    the decoder; with 0 the encoder alone: pictures -> logits (B, K) of its class token. Any multiples of the patch are
    read."""

    def __init__(self, *, patch=16, width, depth=12, heads, undo=12, hidden=0.75, num_classes=0):
        super().__init__()
        self.width, self.multiple, self.hidden, self.patch = width, patch, hidden, patch
        self.stem, self.cls = PatchTokens(width, patch), nn.Parameter(torch.empty(1, 1, width))
        self.unknown = nn.Parameter(torch.empty(1, 1, width)) if undo else None

        def layer() -> Block:
            mix = Pre(nn.LayerNorm(width), Subspaces(width, heads))
            return Block(mix, Normed(nn.LayerNorm(width), Sparser(width)))

        self.stack, self.norm = Stack(*(layer() for _ in range(depth))), Norm(width)
        self.decoder = Stack(*(Undo(width, heads) for _ in range(undo))) if undo else None
        self.decoder_norm = Norm(width) if undo else None
        self.pixels = nn.Linear(width, 3 * patch**2) if undo else None
        self.head = nn.Linear(width, num_classes) if num_classes and not undo else nn.Identity()

    def reset(self) -> None:
        nn.init.normal_(self.cls, std=0.02)
        if self.unknown is not None:
            nn.init.normal_(self.unknown, std=0.02)

    @property
    def classifier(self) -> tuple[str, ...]:  # type: ignore[override]
        """An encoder has one."""
        return ("head.",) if self.decoder is None else ()

    @property
    def features(self) -> Callable:  # type: ignore[override]
        """As a backbone's, of an encoder; who paints has none."""
        if self.decoder is not None:
            raise AttributeError("a CRATE-MAE with a decoder paints and gives no maps: build it with undo=0")
        return super().features

    def patch_embed(self, x: Tensor, hidden: Tensor | None = None) -> Tokens:
        """(B, 3, H, W) -> Tokens (B, 1 + N, D), the class token first. hidden: (B, N) bool, patches not to be seen."""
        t = self.stem(x)
        if hidden is not None:
            t = t.replace(x=torch.where(hidden[..., None], self.unknown, t.x))
        assert t.grid is not None
        return prepend(self.cls, t.replace(x=t.x + grid_places(t.grid, self.width, t.x.device).to(t.x.dtype)))

    def places(self, batch: dict) -> dict[str, int]:
        """{"image": N}: the patches that may be hidden."""
        h, w = patch_grid(batch["image"], self.patch)
        return {"image": h * w}

    def painted(self, x: Tensor, hidden: Tensor) -> Tensor:
        """(B, 3, H, W), hidden (B, N) bool -> (B, N, P P 3): the pixels of all patches, as they are guessed."""
        if self.decoder is None:
            raise PlaitError("this CRATE-MAE is an encoder alone: got undo=0, build it with layers of a decoder")
        t = self.stack(self.patch_embed(x, hidden))
        t = self.decoder(t.replace(x=self.norm(t.x)))
        return self.pixels(self.decoder_norm(t.x))[:, 1:]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Of an encoder logits (B, K); else (B, N, P P 3): what is painted where every other patch is hidden."""
        if self.decoder is None:
            return super().forward(x, keep)
        n = self.places({"image": x})["image"]
        hidden = torch.arange(n, device=x.device) % 2 == 1
        return self.painted(x, hidden.expand(x.shape[0], -1))

    def guess(self, batch: dict, luck: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """{"costs": {"pixels": (B,)}}, the mean squared error of the hidden pixels, NaN in rows without a picture; and
        {"blind": ...} of the same, what it costs to paint them in the mean colour of those that are seen."""
        s = fill_absent(batch, {"image": ((3, self.patch, self.patch), torch.float32)})
        x, there = s.values["image"], s.present["image"]
        seen = int(luck["image"].shape[1] * (1 - self.hidden))
        hidden = luck["image"].argsort(1).argsort(1) >= seen  # (B, N)
        made, real = wide(self.painted(x, hidden)), wide(patches(x, self.patch))
        colours = real.unflatten(2, (-1, 3)).mean(2)  # (B, N, 3)
        mean = colours.masked_fill(hidden[..., None], 0.0).sum(1) / max(seen, 1)
        guesses = {"costs": made, "blind": mean.repeat(1, self.patch**2)[:, None]}
        found = {name: each(guess, real, hidden) for name, guess in guesses.items()}
        return {name: {"pixels": cost.masked_fill(~there, torch.nan)} for name, cost in found.items()}


def patches(x: Tensor, patch: int) -> Tensor:
    """(B, 3, H, W) -> (B, N, P P 3): a pixel's channels lie side by side."""
    return x.unflatten(2, (-1, patch)).unflatten(4, (-1, patch)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def each(made: Tensor, real: Tensor, hidden: Tensor) -> Tensor:
    """(B,): the mean squared error (B, N, ...) of the places that are hidden (B, N)."""
    return ((made - real).square().mean(2) * hidden).sum(1) / hidden.sum(1)


MODEL = CRATEMAE
TAKES = ("image",)
ROLES = ("masked",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(patch=8, width=32, depth=2, heads=2, undo=2),
    "nano": dict(patch=8, width=128, depth=6, heads=4, undo=3),
    "nano_encoder": dict(patch=8, width=128, depth=6, heads=4, undo=0, num_classes=1000),
    "base_encoder": dict(width=768, heads=12, undo=0, num_classes=1000),
    "tiny": dict(width=384, heads=6),
    "small": dict(width=576, heads=12),
    "base": dict(width=768, heads=12),
    "large": dict(width=1024, depth=24, heads=16, undo=24),
}
SIZE_ROLES = {
    "nano_encoder": ("backbone",),
    "base_encoder": ("backbone",),
}
IMAGENET = dict(crop_pct=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), image=(224, 224))
OFFICIAL = IMAGENET | dict(source="official", licence="mit")
WEIGHTS = {  # the authors' file lies where only a browser gets it
    "tiny": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE mae_crate_tiny"),
    "small": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE mae_crate_small"),
    "base": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE mae_crate_base"),
    "large": OFFICIAL | dict(github="Ma-Lab-Berkeley/CRATE mae_crate_large"),
}
CODE, UNDO = "blocks.{i}.layers.0", "decoder_blocks.{i}.layers.0"
MIX, FEED, BACK = "stack.blocks.{i}.mix", "stack.blocks.{i}.feed", "decoder.blocks.{i}"
RULES = {
    "official": [
        Rename("cls_token", "cls"),
        Rename("mask_token", "unknown"),
        Drop("pos_embed"),
        Drop("decoder_pos_embed"),
        Drop("decoder_embed.{p}"),
        Rename("patch_embed.proj.{p}", "stem.proj.{p}"),
        Rename(f"{CODE}.0.norm.{{p}}", f"{MIX}.norm.{{p}}"),
        Rename(f"{CODE}.0.fn.qkv.weight", f"{MIX}.f.onto.weight"),
        Rename(f"{CODE}.0.fn.to_out.0.{{p}}", f"{MIX}.f.out.{{p}}"),
        Rename(f"{CODE}.1.norm.{{p}}", f"{FEED}.norm.{{p}}"),
        Rename(f"{CODE}.1.fn.weight", f"{FEED}.f.dictionary"),
        Rename("norm.{p}", "norm.{p}"),
        Rename(f"{UNDO}.0.norm.{{p}}", f"{BACK}.feed_norm.{{p}}"),
        Rename(f"{UNDO}.0.fn.weight", f"{BACK}.dictionary.weight"),
        Rename(f"{UNDO}.1.norm.{{p}}", f"{BACK}.mix_norm.{{p}}"),
        Rename(f"{UNDO}.1.fn.qkv.weight", f"{BACK}.mix.onto.weight"),
        Rename(f"{UNDO}.1.fn.to_out.0.{{p}}", f"{BACK}.mix.out.{{p}}"),
        Rename("decoder_norm.{p}", "decoder_norm.{p}"),
        Rename("decoder_pred.{p}", "pixels.{p}"),
        Rename("head.{p}", "head.{p}"),
    ]
}
