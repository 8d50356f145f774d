"""Healthy random tables with pictures, sounds, texts, numbers, categories and dates, for tests to damage."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile
from PIL import Image

WORDS = "red green blue small big round square old new fast slow cat dog tree house river über naïve 猫 дом".split()


@dataclass
class Damaged:
    """A damaged table: what to read, and the arguments of Schema.guess (kinds, inputs, target, group, split) that a
    user would give."""

    name: str
    source: Any
    arguments: dict = field(default_factory=dict)


class Maker:
    """Draws healthy tables with pictures, sounds, texts, numbers, categories and dates, for the damage to begin
    with."""

    def __init__(self, seed: int, folder: Path):
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.folder = folder
        self.n = int(self.rng.integers(24, 48))
        folder.mkdir(parents=True, exist_ok=True)

    def png(self, high: int = 12, wide: int = 12, mode: str = "RGB") -> bytes:
        out = io.BytesIO()
        Image.fromarray(self.rng.integers(0, 256, (high, wide, 3), dtype=np.uint8)).convert(mode).save(out, "PNG")
        return out.getvalue()

    def wav(self, seconds: float = 0.1, rate: int = 8000) -> bytes:
        out = io.BytesIO()
        soundfile.write(out, 0.3 * self.rng.standard_normal(int(seconds * rate)), rate, format="WAV")
        return out.getvalue()

    def sentence(self) -> str:
        return " ".join(self.rng.choice(WORDS, int(self.rng.integers(3, 9))))

    def table(self) -> dict[str, list]:
        n, rng = self.n, self.rng
        start = datetime(2020, 1, 1)
        return {
            "text": [self.sentence() for _ in range(n)],
            "number": [round(float(v), 3) for v in rng.normal(size=n)],
            "colour": [str(c) for c in rng.choice(["red", "green", "blue"], n)],
            "day": [(start + timedelta(days=int(d))).date().isoformat() for d in rng.integers(0, 900, n)],
            "flag": [["yes", "no"][int(v)] for v in rng.integers(0, 2, n)],
            "label": [["cat", "dog"][i % 2] for i in range(n)],
        }

    def some(self, share: float = 0.3) -> list[int]:
        """A few rows, at least one."""
        return sorted(self.rng.choice(self.n, max(1, int(share * self.n)), replace=False).tolist())

    def csv(self, table: dict[str, list], separator: str = ",", suffix: str = ".csv") -> Path:
        path = self.folder / f"table{suffix}"
        lines = [separator.join(_quoted(name, separator) for name in table)]
        lines += [separator.join(_quoted(c, separator) for c in row) for row in zip(*table.values())]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def parquet(self, table: dict[str, list]) -> Path:
        path = self.folder / "table.parquet"
        pa.parquet.write_table(pa.table(table), path)
        return path

    def pictures(self) -> list[str]:
        names = [f"{i}.png" for i in range(self.n)]
        for name in names:
            (self.folder / name).write_bytes(self.png())
        return names

    def sounds(self) -> list[str]:
        names = [f"{i}.wav" for i in range(self.n)]
        for name in names:
            (self.folder / name).write_bytes(self.wav())
        return names


def _quoted(cell: Any, separator: str) -> str:
    text = "" if cell is None else str(cell)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in (separator, '"', "\n")) else text


def bomb(width: int = 32_000, height: int = 32_000) -> bytes:
    """A PNG whose header promises a thousand million pixels, in a few dozen bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
