"""Where media cells are found, and what is refused: paths as people write them, and bytes in a cell itself."""

from __future__ import annotations

import base64
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlparse


class Bad(ValueError):
    """A cell that holds something, but nothing usable. The message is the reason, short and without the cell's own
    content."""


class Missing(ValueError):
    """A cell that turns out to be empty. The message is what to count it as."""


@dataclass
class Place:
    """Where media cells are found, what is refused, and where remarks about cells are counted (thread-safe)."""

    root: Path | None = None
    allow_outside: bool = False
    max_pixels: int = 100_000_000
    notes: Counter = field(default_factory=Counter)
    lock: Any = field(default_factory=threading.Lock, repr=False)
    large: Any = field(default_factory=threading.Lock, repr=False)  # held while a very large picture is decoded
    folders: dict = field(default_factory=dict, repr=False)  # what lies in those that were looked through

    def note(self, remark: str, times: int = 1) -> None:
        """Count a remark such as "too long"."""
        with self.lock:
            self.notes[remark] += times

    @cached_property
    def home(self) -> Path:
        """The root without links: what lies beneath it may be read."""
        return Path(self.root or ".").resolve()

    def source(self, cell: Any) -> bytes | Path:
        """The bytes or the existing file that a media cell means: bytes, a path, or {bytes, path}. Raises Bad."""
        if isinstance(cell, dict):
            cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
        if isinstance(cell, (bytes, bytearray, memoryview)):
            if len(cell) == 0:
                raise Bad("no bytes")
            return bytes(cell)
        if not isinstance(cell, str):
            raise Bad("neither a path nor bytes")
        if not cell.strip():
            raise Missing("empty path")
        return self._file(cell) if (inside := inline(cell)) is None else inside

    def _file(self, cell: str) -> Path:
        if "\0" in cell or len(cell) > 4096:
            raise Bad("not a path")
        if REMOTE.match(cell):
            raise Bad("a URL: plait fetches nothing, download the files and give their paths")
        if self.root is None and not self.allow_outside:
            raise Bad("a path, but the table has no root folder (read_table(..., root=...))")
        try:
            folder = False
            for spelled in spellings(cell):
                path = Path(self.root or ".", spelled).resolve()
                if not path.exists():
                    path = self._other_case(path)
                if not self.allow_outside and not path.is_relative_to(self.home):
                    raise Bad("path outside the table's folder")
                if path.is_file():
                    if path.stat().st_size == 0:
                        raise Bad("empty file")
                    return path
                folder = folder or path.is_dir()
        except (OSError, RuntimeError) as error:
            raise Bad("not a path") from error
        raise Bad("a folder, not a file" if folder else "no such file")

    def _other_case(self, path: Path) -> Path:
        """The one path beneath the root that differs from this in case alone, or this."""
        if not path.is_relative_to(self.home):
            return path
        found = self.home
        for part in path.relative_to(self.home).parts:
            alike = self._listed(found).get(part.casefold(), [])
            if part not in alike and len(alike) != 1:
                return path
            found = found / (part if part in alike else alike[0])
        return found

    def _listed(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder, by what they are in lower case."""
        if folder not in self.folders:
            names: dict[str, list[str]] = {}
            for entry in folder.iterdir() if folder.is_dir() else ():
                names.setdefault(entry.name.casefold(), []).append(entry.name)
            self.folders[folder] = names
        return self.folders[folder]


REMOTE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
INLINE = re.compile(r"\s*data:[\w.+-]+/[\w.+-]+(?:;[\w=.+-]+)*?(;base64)?,")
# how the bytes of PNG, JPEG, GIF, RIFF, TIFF, FLAC, Ogg and MP3 begin as base64
BASE64 = re.compile(
    r"\s*(iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK|ZkxhQw|T2dnU|SUQz|//[us][QRSU])[A-Za-z0-9+/\s]{16,}={0,2}\s*$"
)


def inline(cell: str) -> bytes | None:
    """The bytes that a text holds itself, as a data URI or in base64; None of a text that is none of them. Raises Bad
    where they are damaged."""
    found = INLINE.match(cell)
    if found is None and not (len(cell) >= 40 and BASE64.match(cell)):
        return None
    text = cell if found is None else cell[found.end() :]
    if found is not None and not found[1]:
        return unquote_to_bytes(text)
    text = "".join(text.split()).replace("-", "+").replace("_", "/")  # as URLs have it
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise Bad("broken base64") from error


def is_path(cell: str) -> bool:
    """Whether a text names a file on this machine, and is neither a URL nor the bytes themselves."""
    return not (REMOTE.match(cell) or cell.lower().startswith("file:") or INLINE.match(cell) or BASE64.match(cell))


def spellings(cell: str) -> list[str]:
    """The ways in which a path may be meant: as it stands, of file://, with / for the separators of Windows."""
    ways = [cell.strip()]
    if cell.strip().lower().startswith("file:"):
        ways = [unquote(urlparse(cell.strip()).path)]
    return list(dict.fromkeys([*ways, *(way.replace("\\", "/") for way in ways if "\\" in way)]))
