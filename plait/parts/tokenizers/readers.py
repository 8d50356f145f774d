"""A reader for each sort of slot: values -> Tokens with positions, each reader called with (x, keep)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.parts.positions.learned import GridPositions
from plait.parts.positions.sine import sinusoids
from plait.parts.presence import Blank
from plait.parts.tokenizers.features import CategoryTokens, NumberTokens, VectorTokens
from plait.parts.tokenizers.patches import PatchTokens
from plait.parts.tokenizers.spectrogram import LogMel, SpectrogramTokens
from plait.parts.tokenizers.words import WordTokens

KINDS = ("image", "text", "audio", "number", "category", "vector")


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
        return t.replace(x=t.x + 0.02 * sinusoids(ids.shape[1], t.x.shape[2], ids.device).to(t.x.dtype))


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
        place = 0.02 * sinusoids(t.grid[0], t.x.shape[2], x.device).to(t.x.dtype)[:, None] + self.pitch  # (t, m, D)
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
    raise PlaitError(f"got a slot of kind {spec['kind']!r}, expected one of {', '.join(KINDS)}")
