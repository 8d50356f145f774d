"""Sounds: a path, bytes or {bytes, path} -> mono int16 at the schema's rate."""

from __future__ import annotations

import io
import struct
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import soundfile
import soxr
import torch
from torch import Tensor, nn

from plait.core.declared import Record
from plait.core.tokens import Tokens
from plait.data.folder import AUDIO_SUFFIXES
from plait.data.kinds.base import (
    BY_TOWER,
    SIZE,
    SPREAD,
    Bad,
    FitOptions,
    Glance,
    Kind,
    Missing,
    Place,
    cells_of,
    counted,
)
from plait.data.kinds.image import head_bytes, inline_files, named_files
from plait.data.stores import Ragged
from plait.parts.positions.sine import sinusoids
from plait.parts.presence import Blank
from plait.parts.tokenizers.spectrogram import LogMel
from plait.parts.tokenizers.stems import SpectrogramStem

MAGIC = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM", b".snd")
MOST_SECONDS = 30.0
MOST_RATE = 16_000
CANCELS = 0.01  # of the loudest channel's power


class AudioKind(Kind):
    """Channels are averaged, but where they cancel each other out the loudest is heard alone; longer sounds are cut at
    `seconds` and counted as too long; samples are kept as int16."""

    name, slot, own_slot, media, suffix = "audio", "audio", True, True, ".wav"
    learnt: ClassVar[Record] = Record({"rate": SIZE, "seconds": SPREAD, "samples": SIZE}, BY_TOWER)

    def guess(self, glance: Glance) -> str | None:
        if glance.is_text:
            return named_files(glance, AUDIO_SUFFIXES) or inline_files(glance, "audio", looks_like_audio)
        if not glance.may_hold_bytes:
            return None
        heads = [h for h in map(head_bytes, glance.sample) if h is not None]
        hits = sum(looks_like_audio(h) for h in heads)
        return counted(hits, len(heads), "looked at start like a sound file") if hits * 2 > len(heads) else None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`rate`: the one that is given, or the most common, at most 16 kHz. `seconds`: the lengths' 0.99 quantile, at
        most 30. `samples`: their product."""
        rates, lengths = Counter(), []
        for cell in cells_of(column, 2000):
            try:
                info = _info(options.place.source(cell))
            except (Bad, Missing):
                continue
            rates[info.samplerate] += 1
            lengths.append(info.frames / info.samplerate)
        rate = options.rate or (min(rates.most_common(1)[0][0], MOST_RATE) if rates else MOST_RATE)
        seconds = min(float(np.quantile(lengths, options.longest)), MOST_SECONDS) if lengths else MOST_SECONDS
        step = max(1, rate // 10)
        samples = max(step, -(-round(seconds * rate) // step) * step)
        return {"rate": int(rate), "seconds": samples / rate, "samples": int(samples)}

    def width(self, params: dict) -> int:
        return params["samples"]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        source = place.source(cell)
        info = _info(source)
        _whole_wav(source)
        most = int(np.ceil((params["samples"] / params["rate"] + 0.05) * info.samplerate))
        frames = min(info.frames, most)
        try:
            sound, rate = soundfile.read(_handle(source), frames=frames, dtype="float32", always_2d=True)
        except Exception as error:
            raise Bad("broken sound") from error
        if len(sound) < frames:
            raise Bad("truncated sound")
        if not np.isfinite(sound).all():
            raise Bad("a sample is not a finite number")
        mono = mixed(sound)
        if rate != params["rate"]:
            mono = soxr.resample(mono, rate, params["rate"])
        if len(mono) == 0:
            raise Bad("a sound without samples")
        if round(info.frames * params["rate"] / rate) > params["samples"]:
            place.note("too long")
        return np.round(np.clip(mono[: params["samples"]], -1, 1) * 32767).astype(np.int16)

    def store(self, rows: int, params: dict) -> Ragged:
        return Ragged(rows, np.int16, step=max(1, params["rate"] // 10), most=params["samples"], scale=1 / 32767)

    def write(self, value: np.ndarray, params: dict) -> bytes:
        """int16 (S,), or float32 in [-1, 1], as WAV of 16 bits."""
        out, value = io.BytesIO(), np.asarray(value)
        if value.dtype.kind == "i":
            value = value.astype(np.float32) / 32767
        value = np.clip(np.round(value * 32768), -32768, 32767).astype(np.int16)  # a file's full scale is 32768
        soundfile.write(out, value, params["rate"], format="WAV", subtype="PCM_16")
        return out.getvalue()

    def arguments(self, shape: dict) -> dict:
        return {"rate": shape["rate"]}

    def tokens(self, width: int, rate: int) -> nn.Module:
        return Sound(width, rate)

    def blank(self, rate: int) -> Blank:
        return (rate // 10,), torch.float32

    def augment(
        self, x: Tensor, keep: Tensor | None, shape: dict, generator: torch.Generator, strength: float, whole: bool
    ) -> tuple[Tensor, None]:
        return augment_sounds(x, keep, generator, strength, shift=0.0 if whole else 0.05), None


class Sound(nn.Module):
    """(B, S) waveform -> Tokens, four spectrogram frames each.

    Each recording's spectrogram has mean 0 and spread 1: as it comes, a constant far larger than what speech adds to it
    hides speech from the first layers, and a recording's volume says more of the microphone than of the sound.
    """

    def __init__(self, width: int, rate: int, bands: int = 64):
        super().__init__()
        self.mel = LogMel(rate, bands)
        self.stem = SpectrogramStem(width, bands)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        x, keep = self.mel(x, torch.ones_like(x, dtype=torch.bool) if keep is None else keep)
        t = self.stem(standard(x, keep), keep)
        return t.replace(x=t.x + 0.1 * sinusoids(t.x.shape[1], t.x.shape[-1], x.device).to(t.x.dtype))


def standard(x: Tensor, keep: Tensor) -> Tensor:
    """Spectrograms (B, T, F), keep (B, T) -> with mean 0 and spread 1 over each one's real frames; one without any
    detail stays flat."""
    keep = keep[..., None]
    count = (keep.sum((1, 2), keepdim=True) * x.shape[2]).clamp(min=1)
    x = x - x.masked_fill(~keep, 0.0).sum((1, 2), keepdim=True) / count
    variance = x.masked_fill(~keep, 0.0).square().sum((1, 2), keepdim=True) / count
    return x * (variance + 1e-4).rsqrt()


def mixed(sound: np.ndarray) -> np.ndarray:
    """(S, C) -> (S,): the mean of the channels, or the loudest where that has next to nothing of it, as where one is
    the other turned round."""
    if sound.shape[1] == 1:
        return sound[:, 0]
    mono, loud = sound.mean(axis=1), sound.var(axis=0, dtype=np.float64)
    return sound[:, loud.argmax()] if mono.var(dtype=np.float64) < CANCELS * loud.max() else mono


def looks_like_audio(head: bytes) -> bool:
    """Whether bytes start like a sound file."""
    return head.startswith(MAGIC) or (head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE")


def _handle(source: bytes | Path) -> io.BytesIO | str:
    return io.BytesIO(source) if isinstance(source, bytes) else str(source)


def _info(source: bytes | Path) -> Any:
    try:
        info = soundfile.info(_handle(source))
    except Exception as error:
        raise Bad("not a sound") from error
    if info.frames <= 0 or info.samplerate <= 0:
        raise Bad("a sound without samples")
    return info


def _whole_wav(source: bytes | Path) -> None:
    """Raise Bad where a WAV file is shorter than its own header says: libsndfile reads what is left without a word."""
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return
        at = 12
        while at + 8 <= size:
            file.seek(at)
            name, length = struct.unpack("<4sI", file.read(8))
            if name == b"data":
                streamed = length in (0, 0x7FFFFFFF, 0xFFFFFFFF) or length >= 0xFFFFFF00
                if not streamed and at + 8 + length > size:
                    raise Bad("truncated sound")
                return
            at += 8 + length + (length & 1)


def augment_sounds(x: Tensor, keep: Tensor, generator: torch.Generator, strength: float, shift: float = 0.05) -> Tensor:
    """(B, S) in [-1, 1] -> the same shape and range; what is shifted in is silence, and nothing is written into the
    padding.

    shift: the largest share of its length that a sound is moved at strength 1."""
    b, s = x.shape
    spread = (2 * torch.rand((b, 2), generator=generator) - 1).to(x)
    noise = torch.randn((b, s), generator=generator).to(x)
    level = torch.rand((b, 1), generator=generator).to(x)
    length = keep.sum(1)
    away = (spread[:, 0] * shift * strength * length).round().to(torch.int64)
    source = torch.arange(s, device=x.device)[None, :] - away[:, None]  # (B, S)
    real = (source >= 0) & (source < length[:, None])
    moved = torch.where(real, x.gather(1, source.clamp(0, s - 1)), 0.0)
    loud = (moved.square().sum(1, keepdim=True) / length.clamp(min=1)[:, None]).sqrt()
    changed = moved * torch.exp(0.4 * strength * spread[:, 1:]) + 0.05 * strength * level * loud * noise
    return torch.where(keep, changed, 0.0).clamp(-1, 1)
