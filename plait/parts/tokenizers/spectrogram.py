"""Waveforms to log-mel spectrograms, and spectrograms to patch tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plait.core.precision import wide
from plait.core.tokens import Tokens, check_mask
from plait.errors import PlaitError

FLOOR = 1e-8  # power; the rounding noise of 16-bit sound lies below it
SILENCE = (math.log10(FLOOR) + 4) / 4  # what a frame of zeros becomes


class LogMel(nn.Module):
    """Waveforms (B, S) at `rate` Hz, keep (B, S) or None -> (B, T, mels) and its keep (B, T) or None, T = ceil(S /
    hop).

    Frame t is centred on sample t * hop, sees zeros beyond the real samples, and is real where that sample is. The
    power of a Hann window's spectrum goes through triangular filters of unit area, evenly spaced on Slaney's mel scale
    from 0 Hz to rate / 2, and becomes (log10(max(power, 1e-8)) + 4) / 4: about -1 to 1. This is Whisper's input
    (arXiv:2212.04356) without its floor relative to the loudest frame, so that no frame depends on the others. Frames
    that are not real are silence.

    window and hop are in seconds. The transform runs in float32 even under autocast. Raises ValueError for more mels
    than the window can tell apart.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, mels: int = 80, *, window: float = 0.025, hop: float = 0.010):
        super().__init__()
        self.rate, self.mels = rate, mels
        self.size, self.hop = round(rate * window), round(rate * hop)
        narrowest = _hertz(2 * _mel(rate / 2) / (mels + 1))  # Hz from foot to foot of the lowest triangle
        if narrowest <= rate / self.size:
            raise PlaitError(
                f"{mels} mels at {rate} Hz: the lowest is {narrowest:.0f} Hz wide, but a window of {window} s resolves "
                f"{rate / self.size:.0f} Hz: take fewer mels or a longer window"
            )
        self.register_buffer("window", torch.empty(self.size), persistent=False)
        self.register_buffer("filters", torch.empty(self.size // 2 + 1, mels), persistent=False)

    def reset(self) -> None:
        self.window.copy_(torch.hann_window(self.size, dtype=torch.float64))
        self.filters.copy_(mel_filters(self.rate, self.size, self.mels))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        check_mask(keep, *x.shape)
        if keep is not None:
            x = x.masked_fill(~keep, 0.0)
            keep = keep[:, :: self.hop]  # (B, T)
        count = (x.shape[1] + self.hop - 1) // self.hop
        kind = x.dtype
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.stft(
                wide(x),
                self.size,
                self.hop,
                window=self.window.to(wide(x).dtype),
                center=True,
                pad_mode="constant",
                return_complex=True,
            )  # (B, F, 1 + S // hop)
            power = torch.view_as_real(spectrum).square().sum(-1)[:, :, :count].mT  # (B, T, F)
            x = (((power @ self.filters.to(power.dtype)).clamp(min=FLOOR).log10() + 4) / 4).to(kind)  # (B, T, mels)
        return x if keep is None else x.masked_fill(~keep[..., None], SILENCE), keep


class SpectrogramTokens(nn.Module):
    """Waveforms (B, S), keep (B, S) -> Tokens (B, N, D): patches of `patch` = (frames, mels) of a log-mel spectrogram,
    each one token.

    The last patch in time is filled up with silence; a patch is real where any of its frames is. The grid is (time,
    frequency); so patch=(4, mels) makes one token of every four frames.
    """

    def __init__(self, width: int, logmel: LogMel, patch: tuple[int, int]):
        super().__init__()
        if logmel.mels % patch[1]:
            raise PlaitError(
                f"{logmel.mels} mels do not divide into patches of {patch[1]}: choose a number that divides them"
            )
        self.logmel, self.patch = logmel, (patch[0], patch[1])
        self.proj = nn.Conv2d(1, width, self.patch, self.patch)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tokens:
        x, keep = self.logmel(x, keep)
        spare = (self.patch[0] - x.shape[1] % self.patch[0]) % self.patch[0]
        x = self.proj(F.pad(x, (0, 0, 0, spare), value=SILENCE)[:, None])  # (B, 1, T, mels) -> (B, D, t, m)
        if keep is not None:
            keep = F.pad(keep, (0, spare)).unflatten(1, (-1, self.patch[0])).any(-1)  # (B, t)
            keep = keep.repeat_interleave(x.shape[3], 1)  # (B, t * m)
        return Tokens(x.flatten(2).transpose(1, 2), keep=keep, grid=(x.shape[2], x.shape[3]))


def mel_filters(rate: int, size: int, mels: int) -> Tensor:
    """(size // 2 + 1, mels) float64: triangles of unit area in Hz, evenly spaced on Slaney's mel scale from 0 to rate /
    2."""
    bins = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None] * (rate / size)  # Hz
    edges = torch.tensor([_hertz(_mel(rate / 2) * i / (mels + 1)) for i in range(mels + 2)], dtype=torch.float64)
    low, top, high = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (bins - low) / (top - low), (high - bins) / (high - top)
    return torch.minimum(rise, fall).clamp(min=0.0) * (2.0 / (high - low))


def _mel(hertz: float) -> float:
    """Slaney's scale: linear to 1000 Hz, then 27 steps for every factor of 6.4."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)
