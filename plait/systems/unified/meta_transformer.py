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
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.block import Stack
from plait.core.surgery import freeze
from plait.core.tokens import Tokens, added, prepend
from plait.core.weights import Rename
from plait.errors import PlaitError
from plait.parts.positions.learned import GridPositions
from plait.parts.positions.sine import sinusoids
from plait.parts.presence import Blank, fill_absent, masked, visible
from plait.parts.tokenizers.features import CategoryTokens, NumberTokens, VectorTokens
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.tokenizers.spectrogram import LogMel, SpectrogramTokens
from plait.parts.tokenizers.words import WordTokens
from plait.parts.towers.encoder import pre_norm_blocks
from plait.parts.towers.layouts import timm_blocks


class Encoder(Stack):
    """The encoder that all modalities share: plain pre-norm layers, Tokens (B, N, D) -> Tokens (B, N, D), no norm at
    the end."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__(*pre_norm_blocks(width, depth, heads, 4 * width))  # the official encoder's norms have eps 1e-5


class Pictures(nn.Module):
    """(B, 3, H, W) -> Tokens: patches and learned positions for `size`; edges are filled up with zeros to whole
    patches."""

    def __init__(self, width: int, size: tuple[int, int], patch: int):
        super().__init__()
        self.patches = PatchTokens(width, patch)
        self.positions = GridPositions((-(-size[0] // patch), -(-size[1] // patch)), width)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        down, across = ((self.patches.patch - side % self.patches.patch) % self.patches.patch for side in x.shape[2:])
        return self.positions(self.patches(F.pad(x, (0, across, 0, down))))


class Words(nn.Module):
    """(B, N) ids -> Tokens with fixed positions."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.words = WordTokens(vocab, width)

    def forward(self, ids: Tensor, keep: Tensor | None) -> Tokens:
        t = self.words(ids, keep)
        return t.replace(x=t.x + 0.02 * sinusoids(ids.shape[1], t.x.shape[2], ids.device))


class Sounds(nn.Module):
    """(B, S) waveforms -> Tokens: spectrogram patches with fixed positions in time and learned ones in frequency."""

    def __init__(self, width: int, rate: int, mels: int = 64, patch: int = 16):
        super().__init__()
        self.patches = SpectrogramTokens(width, LogMel(rate, mels), (patch, patch))
        self.pitch = nn.Parameter(torch.empty(mels // patch, width))

    def reset(self) -> None:
        nn.init.trunc_normal_(self.pitch, std=0.02)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        t = self.patches(x, keep)
        place = 0.02 * sinusoids(t.grid[0], t.x.shape[2], x.device)[:, None] + self.pitch  # (t, m, D)
        return t.replace(x=t.x + place.flatten(0, 1))


def tokenizer(width: int, patch: int, spec: dict) -> tuple[nn.Module, Blank]:
    """What reads a slot of `spec["kind"]`, and what stands for it where it is absent."""
    match spec["kind"]:
        case "image":
            return Pictures(width, spec["size"], patch), ((3, *spec["size"]), torch.float32)
        case "text":
            return Words(width, spec["vocab"]), ((1,), torch.int64)
        case "audio":
            return Sounds(width, spec["rate"]), ((1,), torch.float32)
        case "number":
            return NumberTokens(spec["features"], width), ((spec["features"],), torch.float32)
        case "category":
            return CategoryTokens(spec["sizes"], width), ((len(spec["sizes"]),), torch.int64)
        case "vector":
            return VectorTokens(spec["features"], width), ((spec["features"],), torch.float32)
    raise PlaitError(f"got a slot of kind {spec['kind']!r}, expected one of {', '.join(TAKES)}")


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
