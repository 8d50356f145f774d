"""Folders of media files as tables: one folder per class, or all files in one; and one file alone."""

from __future__ import annotations

import os
from pathlib import Path

from plait.errors import DataError

IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".ppm",
    ".pgm",
    ".ico",
)
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
MEDIA = {"image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test"}


def folder_columns(folder: Path) -> dict[str, list[str]]:
    """`image` or `audio` (paths relative to it), `label` for class folders, `split` for train/val/test folders
    above."""
    files = sorted(
        Path(home).relative_to(folder) / name
        for home, _, names in os.walk(folder, onerror=_unreadable)
        if not any(s.startswith(".") for s in Path(home).relative_to(folder).parts)
        for name in names
        if not name.startswith(".") and (Path(home) / name).is_file()
    )
    media = {kind: [p for p in files if p.suffix.lower() in suffixes] for kind, suffixes in MEDIA.items()}
    if media["image"] and media["audio"]:
        raise DataError(
            f"{folder} holds {len(media['image'])} pictures and {len(media['audio'])} sounds. "
            "Give a folder of one kind, or a table with a column for each."
        )
    kind = "image" if media["image"] else "audio"
    found = media[kind]
    if not found:
        inside = ", ".join(str(p) for p in files[:3]) or "nothing"
        raise DataError(
            f"{folder} holds no pictures ({', '.join(IMAGE_SUFFIXES[:3])}...) or sounds "
            f"({', '.join(AUDIO_SUFFIXES[:3])}...). "
            f"It holds {inside}."
        )
    columns = {kind: [p.as_posix() for p in found]}
    tops = {p.parts[0] for p in found if len(p.parts) > 1}
    depth = min(len(p.parts) for p in found)
    if depth >= 2 and tops <= SPLITS and "train" in {t.replace("ing", "") for t in tops}:
        columns["split"] = [p.parts[0] for p in found]
        if depth >= 3:
            columns["label"] = [p.parts[1] for p in found]
    elif depth >= 2:
        columns["label"] = [p.parts[0] for p in found]
    return columns


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename} cannot be read: {error.strerror}. Without it rows, or a class, would be missing: let "
        "it be read, or take it out of the folder"
    ) from error


def file_columns(path: Path) -> dict[str, list[str]]:
    """`image` or `audio`, its name, of one such file; nothing of others."""
    return {kind: [path.name] for kind, suffixes in MEDIA.items() if path.suffix.lower() in suffixes}
