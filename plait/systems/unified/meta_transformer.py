"""Meta-Transformer: A Unified Framework for Multimodal Learning. Zhang, Gong, Zhang, Li, Qiao, Ouyang, Yue, 2023.
arXiv:2307.10802.

New here: one encoder, frozen after it was trained on pictures, reads every modality. Only what turns a modality into
tokens, and the heads, are trained; nothing is paired. So the encoder's weights are those of a ViT, and all there is to
learn of sound or of a table is its tokens.

Differs: the paper trains one modality at a time. Here a row's modalities are encoded each on its own by the same
encoder and `fused` is the mean of those present. Spectrogram patches do not overlap, texts and sounds have fixed
positions, so that no length is too long, and one trained norm follows the encoder. Sizes of ours (nano, toy) start from
nothing, so that nano's encoder is trained too.

The published files hold the encoder alone, as a Sequential of timm's blocks. `create_model("meta_transformer_b16",
pretrained=path)` loads it there, as does `load_weights(model.encoder, state, "official")`;
`model.encoder.requires_grad_(True)` (or `frozen=False`) trains it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.surgery import freeze
from plait.core.tokens import Tokens, added, prepend
from plait.core.weights import Rename
from plait.parts.presence import fill_absent, masked, visible
from plait.parts.tokenizers.readers import tokenizer
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_blocks


class Encoder(Stack):
    """The encoder that all modalities share: plain pre-norm layers, Tokens (B, N, D) -> Tokens (B, N, D), no norm at
    the end."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__(*pre_norm_blocks(width, depth, heads, 4 * width))  # the official encoder's norms have eps 1e-5


class Slot(nn.Module):
    """A modality's tokens with a class token in front; those of absent rows are not real."""

    def __init__(self, read: nn.Module, width: int):
        super().__init__()
        self.read, self.cls = read, nn.Parameter(torch.empty(1, 1, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, x: Tensor, keep: Tensor | None, present: Tensor) -> Tokens:
        t = self.read(x, keep)
        return prepend(self.cls, t.replace(keep=masked(t.keep, present, t.x.shape[1])))


class MetaTransformer(nn.Module):
    """A batch of any modalities -> a vector for each and their mean.

    slots: {name: {"kind": "image", "size": (H, W)}}, or {"kind": "text", "vocab": V}, {"kind": "audio", "rate": Hz},
    {"kind": "number", "features": F}, {"kind": "category", "sizes": (ids of each column, 0 included)},
    {"kind": "vector", "features": F}; any of them, of each kind any number. frozen: the encoder takes no gradient;
    gradients pass through it to the tokens.
    """

    fits = ("slots",)

    def __init__(self, *, slots, patch=16, width=768, depth=12, heads=12, frozen=True):
        super().__init__()
        self.takes, self.width, self.part_widths = tuple(slots), width, dict.fromkeys(slots, width)
        made = {slot: tokenizer(width, patch, spec) for slot, spec in slots.items()}
        self.blanks = {slot: blank for slot, (_, blank) in made.items()}
        self.slots = nn.ModuleDict({slot: Slot(read, width) for slot, (read, _) in made.items()})
        self.encoder = Encoder(width, depth, heads)
        self.norm = nn.LayerNorm(width)
        if frozen:
            freeze(self.encoder)

    def fuse(self, batch: dict) -> dict:
        """{"fused": (B, D), "parts": {slot: (B, D)}, "losses": {name: ()}}: each slot's class token, zeros where it is
        absent, and the mean of those present."""
        s, parts, losses = fill_absent(batch, self.blanks), {}, None
        for slot, read in self.slots.items():
            t = self.encoder(read(s.values[slot], s.keep.get(slot), s.present[slot]))
            parts[slot], losses = self.norm(t.x[:, 0]) * s.present[slot][:, None], added(losses, t.losses)
        seen = visible(batch, s.present)
        count = torch.stack(list(seen.values())).sum(0).clamp(min=1)
        fused = sum(parts[slot] * seen[slot][:, None] for slot in parts) / count[:, None]
        return {"fused": fused, "parts": parts, "losses": losses or {}}

    def forward(self, batch: dict) -> dict:
        return self.fuse(batch)


MODEL = MetaTransformer
TAKES = ("image", "text", "audio", "number", "category", "vector")
ROLES = ("fuser",)
DEFAULT = "nano"
TOY_SLOTS = {
    "image": dict(kind="image", size=(32, 32)),
    "text": dict(kind="text", vocab=64),
    "audio": dict(kind="audio", rate=8000),
    "number": dict(kind="number", features=4),
    "category": dict(kind="category", sizes=(5, 5, 5)),
    "vector": dict(kind="vector", features=6),
}
SLOTS = {
    "image": dict(kind="image", size=(224, 224)),
    "text": dict(kind="text", vocab=49408),
    "audio": dict(kind="audio", rate=16000),
}
SIZES = {
    "toy": dict(slots=TOY_SLOTS, patch=8, width=32, depth=2, heads=2),
    "nano": dict(slots=TOY_SLOTS, patch=8, width=192, depth=6, heads=3, frozen=False),
    "b16": dict(slots=SLOTS),
    "l14": dict(slots=SLOTS, patch=14, width=1024, depth=24, heads=16),
}

URL = "https://download.openxlab.org.cn/models/zhangyiyuan/MetaTransformer/weight//"
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OFFICIAL = IMAGENET | dict(source="official", licence="apache-2.0", part="encoder")
WEIGHTS = {
    "b16": OFFICIAL | dict(url=URL + "Meta-Transformer_base_patch16_encoder", official="Meta-Transformer-B16"),
    "l14": OFFICIAL | dict(url=URL + "Meta-Transformer_large_patch14_encoder", official="Meta-Transformer-L14"),
}
RULES = {
    "official": [
        *timm_blocks("{i}", "blocks.{i}"),  # model.encoder: the published files
        # a whole model: nobody published the rest, which keeps our names
        *timm_blocks("encoder.{i}", "encoder.blocks.{i}"),
        Rename("slots.{rest*}", "slots.{rest*}"),
        Rename("norm.{p}", "norm.{p}"),
    ]
}
