"""The demo sample: pictures of characters in the typefaces that matplotlib ships, with their Unicode names."""

from __future__ import annotations

import io
import unicodedata
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image, ImageDraw, ImageFont

from plait.core.files import write_whole

SIDE = 32  # pixels
FONT = 24  # points, before a too large glyph is shrunk
SEEN = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
        "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic")  # fmt: skip
UNSEEN = ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique")


def glyphs(folder: str | Path, *, seed: int = 0) -> Path:
    """Write `glyphs.parquet` into `folder` and return its path.

    One row per character and typeface: image (32 x 32 gray PNG), text (the Unicode name, lower case), character,
    typeface, split and same.
    The characters are those that all twelve DejaVu typefaces have, that have a name, and that leave ink.

    split: "characters" is a tenth of the characters, in the eight seen typefaces; "typefaces" is the seen characters in
    the four monospaced, unseen typefaces; the other rows are "val" (a tenth) and "train".
    same: rows of one split and typeface with this number in common have the same pixels (Latin, Greek and Cyrillic A),
    so that none of them can be called wrong where another is right.
    """
    fonts = _fonts()
    faces = {name: ImageFont.truetype(str(path), FONT) for name, path in fonts.items()}
    characters = [
        c for c in _common(fonts) if unicodedata.name(chr(c), "") and unicodedata.category(chr(c))[0] not in "CMZ"
    ]
    drawn = {name: {c: _draw(chr(c), face) for c in characters} for name, face in faces.items()}
    characters = [c for c in characters if all(drawn[name][c].any() for name in faces)]
    ranked = sorted(characters, key=lambda c: blake2b(f"{seed} {c}".encode(), digest_size=8).digest())
    held_out = set(ranked[: round(len(ranked) / 10)])
    rows: dict[str, list] = {name: [] for name in ("image", "text", "character", "typeface", "split", "same")}
    known: dict[tuple, int] = {}
    for name in (*SEEN, *UNSEEN):
        for c in characters:
            pixels = drawn[name][c]
            split = _split(name, c, pixels, held_out, seed)
            if split is None:
                continue
            rows["image"].append(_png(pixels))
            rows["text"].append(unicodedata.name(chr(c)).lower())
            rows["character"].append(chr(c))
            rows["typeface"].append(name)
            rows["split"].append(split)
            rows["same"].append(known.setdefault((split, name, pixels.tobytes()), len(known)))
    return write_whole(Path(folder) / "glyphs.parquet", lambda part: pa.parquet.write_table(pa.table(rows), part))


def _fonts() -> dict[str, Path]:
    import matplotlib

    there = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {name: there / f"{name}.ttf" for name in (*SEEN, *UNSEEN)}
    gone = [name for name, path in fonts.items() if not path.is_file()]
    if gone:
        raise FileNotFoundError(f"matplotlib's fonts lack {', '.join(gone)} in {there}; install matplotlib from PyPI.")
    return fonts


def _common(fonts: dict[str, Path]) -> list[int]:
    """Code points that every typeface has, sorted."""
    from matplotlib.ft2font import FT2Font

    maps = [set(FT2Font(str(path)).get_charmap()) for path in fonts.values()]
    return sorted(set.intersection(*maps))


def _draw(character: str, face: ImageFont.FreeTypeFont) -> np.ndarray:
    """Gray uint8 (32, 32), white ink on black, centred; glyphs wider or higher than 28 pixels are shrunk to that."""
    left, top, right, bottom = face.getbbox(character)
    if right <= left or bottom <= top:
        return np.zeros((SIDE, SIDE), np.uint8)
    picture = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), character, font=face, fill=255)
    box = picture.getbbox()
    if box is None:
        return np.zeros((SIDE, SIDE), np.uint8)
    picture = picture.crop(box)
    room = SIDE - 4
    scale = min(1.0, room / picture.width, room / picture.height)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    field = Image.new("L", (SIDE, SIDE))
    field.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return np.asarray(field)


def _split(typeface: str, character: int, pixels: np.ndarray, held_out: set[int], seed: int) -> str | None:
    if typeface in UNSEEN:
        return None if character in held_out else "typefaces"
    if character in held_out:
        return "characters"
    # by the pixels, not the typeface: many signs look alike in several typefaces, and identical pictures must not part
    share = blake2b(f"{seed} {character} ".encode() + pixels.tobytes(), digest_size=8).digest()[0]
    return "val" if share < 26 else "train"


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=6)
    return out.getvalue()
