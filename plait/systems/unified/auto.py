"""plait's own system: a small tower per column, woven by a fusion transformer. plait, 2026.

New here: nothing a paper would claim; a sound default for a user's own table. Convolutional stems where data are few,
one tower per slot, one vector per slot (`parts`) that can answer alone, and a fusion transformer over the tokens of all
slots, whose masks know what is there. Because every part answers for itself and the fusion only adds to their sum, the
whole does not fall behind its best part, and a row that lacks a modality is answered by those it has.

Differs: from early fusion, where all tokens meet at once and the strongest modality drowns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.tokens import Tokens, join, mean, prepend
from plait.data.kinds import KINDS
from plait.parts.presence import fill_absent, masked, visible
from plait.parts.towers.encoder import pre_norm_blocks


class Tower(nn.Module):
    """A slot's tokenizer and its encoder: values (B, ...) -> Tokens (B, 1 + N, D), a summary token first; its vector is
    `summary`."""

    def __init__(self, read: nn.Module, width: int, depth: int, heads: int, drop_path: float):
        super().__init__()
        self.read = read
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.stack = Stack(*pre_norm_blocks(width, depth, heads, 4 * width, drop_path=drop_path))
        self.norm = nn.LayerNorm(width)
        self.width = width

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tokens:
        if not self.training or torch.compiler.is_compiling() or bool(present.all()):
            return self.encode(x, keep, present)
        # nobody looks at the tokens of what is absent: in training it costs nothing
        rows = present.nonzero()[:, 0] if bool(present.any()) else torch.zeros(1, dtype=torch.long, device=x.device)
        t = self.encode(x[rows], None if keep is None else keep[rows], present[rows])
        back = {n: v for n, v in {"x": t.x, "keep": t.keep, "weight": t.weight}.items() if v is not None}
        return t.replace(**{n: v.new_zeros(len(x), *v.shape[1:]).index_copy(0, rows, v) for n, v in back.items()})

    def encode(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tokens:
        t = self.read(x, keep)
        t = self.stack(prepend(self.cls, t.replace(keep=masked(t.keep, present, t.x.shape[1]))))
        return t.replace(x=self.norm(t.x))


def summary(t: Tokens) -> Tensor:
    """(B, D): the summary token and the mean of the others."""
    return t.x[:, 0] + mean(t)


def told(spec: dict) -> dict:
    """What a slot's kind is told of it."""
    return {k: v for k, v in spec.items() if k != "kind"}


def words(module: nn.Embedding) -> None:
    nn.init.normal_(module.weight, std=0.3)


class Auto(nn.Module):
    """A tower per slot and a fusion over all their tokens.

    slots: {"image_0": {"kind": "image", "size": (H, W)}, "number": {"kind": "number", "features": F}, ...}: any of the
    kinds in `plait.data.kinds`, each any number of times, with what it is told (its `arguments`).
    """

    scheme = {nn.Embedding: words}
    fits = ("slots",)

    def __init__(self, *, slots, width=128, depth=3, heads=4, fusion_depth=1, embed_width=128, drop_path=0.1):
        super().__init__()
        self.takes, self.width, self.embed_width = tuple(slots), width, embed_width
        self.part_widths = dict.fromkeys(slots, width)
        self.blanks = {s: KINDS[spec["kind"]].blank(**told(spec)) for s, spec in slots.items()}
        readers = {s: KINDS[spec["kind"]].tokens(width, **told(spec)) for s, spec in slots.items()}
        self.towers = nn.ModuleDict({s: Tower(r, width, depth, heads, drop_path) for s, r in readers.items()})
        self.kinds = nn.Parameter(torch.empty(len(slots), width))
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.fusion = Stack(*pre_norm_blocks(width, fusion_depth, heads, 4 * width, drop_path=drop_path))
        self.norm = nn.LayerNorm(width)
        self.project = nn.ModuleDict({s: nn.Linear(width, embed_width, bias=False) for s in slots})
        self.logit_scale = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        for p in [self.cls, self.kinds]:
            nn.init.trunc_normal_(p, std=0.02)
        nn.init.constant_(self.logit_scale, 2.66)  # log(1 / 0.07), as in CLIP

    def read(self, batch: dict) -> tuple[dict[str, Tokens], dict[str, Tensor]]:
        """Every slot's tokens (B, 1 + N, D), and whether it is there (B,)."""
        s = fill_absent(batch, self.blanks)
        tokens = {n: tower(s.values[n], s.keep.get(n), s.present[n]) for n, tower in self.towers.items()}
        return tokens, s.present

    def vectors(self, tokens: dict[str, Tokens], present: dict[str, Tensor]) -> dict[str, Tensor]:
        return {s: F.normalize(self.project[s](summary(t)), dim=-1) * present[s][:, None] for s, t in tokens.items()}

    def weave(self, tokens: dict[str, Tokens], seen: dict[str, Tensor]) -> Tokens:
        """(B, 1 + N, D): what the fusion makes of the slots that it may see, its own token first, and all losses."""
        streams = [
            t.replace(x=t.x + kind, keep=t.keep & seen[s][:, None], prefix=0)
            for kind, (s, t) in zip(self.kinds, tokens.items())
        ]
        return self.fusion(prepend(self.cls, join(*streams, kinds=tuple(tokens))))

    def embed(self, batch: dict) -> dict[str, Tensor]:
        """{slot: (B, embed_width) unit vectors}, zeros where the slot is absent."""
        return self.vectors(*self.read(batch))

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {slot: (B, D)}, "vectors": as `embed`, "losses": {name: ()}}; an absent slot's
        part is zero, its tokens are not seen."""
        tokens, present = self.read(batch)
        parts = {s: summary(t) * present[s][:, None] for s, t in tokens.items()}
        t, vectors = self.weave(tokens, visible(batch, present)), self.vectors(tokens, present)
        return {"fused": self.norm(t.x[:, 0]), "parts": parts, "vectors": vectors, "losses": t.losses or {}}

    def forward(self, batch: dict) -> dict:
        """fused, parts, vectors and losses as `fuse` and `embed` give them, and logit_scale (1,)."""
        return {**self.fuse(batch), "logit_scale": self.logit_scale}


MODEL = Auto
TAKES = ("image", "text", "audio", "number", "category", "vector", "series", "points")
ROLES = ("embedder", "fuser")
DEFAULT = "small"
TOY_SLOTS = {
    "image_0": dict(kind="image", size=(32, 32)),
    "image_1": dict(kind="image", size=(32, 32)),
    "text_0": dict(kind="text", vocab=64),
    "audio_0": dict(kind="audio", rate=8000),
    "number": dict(kind="number", features=4),
    "category": dict(kind="category", sizes=(5, 5, 5)),
    "vector_0": dict(kind="vector", features=6),
    "series_0": dict(kind="series", channels=2),
    "points_0": dict(kind="points", channels=3),
}
SIZES = {
    "toy": dict(slots=TOY_SLOTS, width=32, depth=1, heads=2, embed_width=16),
    "tiny": dict(slots=TOY_SLOTS, width=96, depth=2, heads=3),
    "small": dict(slots=TOY_SLOTS, width=128, depth=3, heads=4),
    "base": dict(slots=TOY_SLOTS, width=384, depth=6, heads=6, fusion_depth=2),
}
WEIGHTS = {}
