"""Sounds: a path, bytes or {bytes, path} -> mono int16 at the schema's rate."""

from __future__ import annotations

import io
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import soxr

from plait.data.folder import AUDIO_SUFFIXES
from plait.data.kinds.base import Bad, FitOptions, Glance, Kind, Missing, Place, cells_of, counted
from plait.data.kinds.image import head_bytes
from plait.data.stores import Ragged

MAGIC = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"FORM", b".snd")
MOST_SECONDS = 30.0
MOST_RATE = 16_000


class AudioKind(Kind):
    """Channels are averaged; longer sounds are cut at `seconds` and counted as too long; samples are kept as int16."""

    name, slot, own_slot, media = "audio", "audio", True, True

    def guess(self, glance: Glance) -> str | None:
        if glance.is_text:
            ends = "|".join(s.replace(".", r"\.") for s in AUDIO_SUFFIXES)
            hits = glance.matching(f"({ends})$")
            if hits * 2 > glance.count:
                some = next(v for v in glance.sample if v.lower().endswith(AUDIO_SUFFIXES))
                return counted(hits, glance.count, f"end in {Path(some).suffix} or alike")
            return None
        heads = [h for h in map(head_bytes, glance.sample) if h is not None]
        hits = sum(looks_like_audio(h) for h in heads)
        return counted(hits, len(heads), "looked at start like a sound file") if hits * 2 > len(heads) else None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`rate`: the most common, at most 16 kHz. `seconds`: the lengths' 0.99 quantile, at most 30. `samples`: their
        product."""
        rates, lengths = Counter(), []
        for cell in cells_of(column, 2000):
            try:
                info = _info(options.place.source(cell))
            except (Bad, Missing):
                continue
            rates[info.samplerate] += 1
            lengths.append(info.frames / info.samplerate)
        rate = min(rates.most_common(1)[0][0], MOST_RATE) if rates else MOST_RATE
        seconds = min(float(np.quantile(lengths, options.longest)), MOST_SECONDS) if lengths else 1.0
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
        mono = sound.mean(axis=1)
        if rate != params["rate"]:
            mono = soxr.resample(mono, rate, params["rate"])
        if len(mono) == 0:
            raise Bad("a sound without samples")
        if round(info.frames * params["rate"] / rate) > params["samples"]:
            place.note("too long")
        return np.round(np.clip(mono[: params["samples"]], -1, 1) * 32767).astype(np.int16)

    def store(self, rows: int, params: dict) -> Ragged:
        return Ragged(rows, np.int16, step=max(1, params["rate"] // 10), most=params["samples"], scale=1 / 32767)


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
