"""Pictures: a path, bytes or {bytes, path} -> uint8 (3, H, W), letterboxed on gray, or cropped as published weights
ask."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from plait.core.declared import Record, Within
from plait.core.tokens import Tokens
from plait.data.folder import IMAGE_SUFFIXES
from plait.data.kinds.base import BY_TOWER, Bad, FitOptions, Glance, Kind, Missing, Place, cells_of, counted
from plait.data.kinds.crop import crop, crop_place
from plait.data.kinds.moved import augment_images, movement
from plait.data.kinds.place import inline
from plait.data.stores import Fixed
from plait.parts.positions.learned import GridPositions
from plait.parts.presence import Blank
from plait.parts.scaling import Normalise
from plait.parts.tokenizers.stems import ImageStem

# no formats that run other programs (EPS) or are no pictures
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000", "AVIF", "MPO", "TGA")
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6", b"\0\0\0\x0cjP")
PNG_END = b"IEND\xaeB`\x82"
GRAY = 128
LARGE, STRIP = 1 << 24, 1 << 22  # pixels of a picture that is decoded alone and made smaller in parts, and of a part
BRIGHT = 0.999  # the share of deep pixels that are not beyond white
PHOTO = 64  # pictures with both sides above this may be mirrored; glyphs and diagrams mean something else in the mirror


SIDE = Within(int, 1, 1 << 13)  # pixels


class ImageKind(Kind):
    """Letterboxing keeps the aspect and fills the rest with gray. Transparent pictures are laid on white; EXIF
    orientation is respected."""

    name, slot, own_slot, media, late, suffix = "image", "image", True, True, True, ".png"
    learnt: ClassVar[Record] = Record({"size": tuple[SIDE, SIDE]}, {"crop": dict, "range": list[float]} | BY_TOWER)
    follows = ("image",)

    def guess(self, glance: Glance) -> str | None:
        if glance.is_text:
            return named_files(glance, IMAGE_SUFFIXES) or inline_files(glance, "image", looks_like_image)
        if not glance.may_hold_bytes:
            return None
        heads = [h for h in map(head_bytes, glance.sample) if h is not None]
        hits = sum(looks_like_image(h) for h in heads)
        return counted(hits, len(heads), "looked at start like a picture file") if hits * 2 > len(heads) else None

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`size` [H, W]: as given, else a box for the training pictures. `range`: what is black and what is white, of
        those with more than 8 bits a pixel, where there are such.

        The long side is the median long side rounded up to a multiple of 8 (32 to 224); the other side is shorter where
        nine tenths of the pictures are (a table of 400 x 100 pictures gets [56, 224]). `crop`: as given.
        """
        own = {} if options.crop is None else {"crop": options.crop}
        if (ends := _range(cells_of(column, 200), options.place)) is not None:
            own["range"] = ends
        if options.image_size is not None:
            return {"size": [int(s) for s in options.image_size]} | own
        sides = []
        with no_pillow_warnings():
            for cell in cells_of(column, 500):
                try:
                    with _open(cell, options.place) as picture:
                        sides.append(picture.size if _lies(picture) else picture.size[::-1])  # (H, W)
                except (Bad, Missing):
                    continue
        if not sides:
            return {"size": [32, 32]} | own
        sides = np.asarray(sides, dtype=np.float64)
        long = min(max(float(np.median(sides.max(1))), 32.0), 224.0)
        shape = np.quantile(sides / sides.max(1, keepdims=True), 0.9, axis=0)  # share of the long side, for H and W
        shape = shape / shape.max()
        return {"size": [int(max(32, -(-round(long * s, 6) // 8) * 8)) for s in shape]} | own

    def width(self, params: dict) -> int:
        return 3 * params["size"][0] * params["size"][1]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        with _open(cell, place) as picture:
            if picture.width * picture.height <= LARGE:
                return self._pixels(picture, params)
            with place.large:  # so many bytes for each thread are more than a machine may have
                return self._pixels(picture, params)

    def _pixels(self, picture: Image.Image, params: dict) -> np.ndarray:
        """uint8 (3, H, W) of an opened picture."""
        high, wide = params["size"]
        try:
            if picture.format == "PNG" and not _ends(picture.fp):
                raise Bad("broken picture (cut off)")
            if "crop" not in params:
                picture.draft(None, (2 * max(high, wide),) * 2)  # lets JPEG decode at a fraction of its size
            picture.load()
            ends, size = params.get("range"), picture.size[::-1] if _lies(picture) else picture.size
            if "crop" not in params and picture.width * picture.height > LARGE:
                picture = _reduced(picture, max(high, wide), ends)
            picture = to_rgb(ImageOps.exif_transpose(picture), ends)
            if "crop" in params:
                return crop(picture, high, wide, **params["crop"])
            return letterbox(picture, high, wide, size[::-1])
        except Bad:
            raise
        except Exception as error:  # Pillow raises a dozen types on broken files; the reason goes into the report
            raise Bad(f"broken picture ({type(error).__name__})") from error

    def window(self, cell: Any, params: dict, place: Place) -> list[float]:
        high, wide = params["size"]
        with _open(cell, place) as picture:
            width, height = picture.size[::-1] if _lies(picture) else picture.size
        h, w, top, left = (crop_place if "crop" in params else letterbox_place)(
            height, width, high, wide, **params.get("crop", {})
        )
        x, y = width / w, height / h
        return [-left * x, -top * y, (wide - left) * x, (high - top) * y]

    def store(self, rows: int, params: dict) -> Fixed:
        return Fixed(rows, (3, *params["size"]), np.uint8, scale=1 / 255)

    def write(self, value: np.ndarray, params: dict) -> bytes:
        """uint8 (3, H, W), or float32 in [0, 1], as PNG."""
        out, value = io.BytesIO(), np.asarray(value)
        if value.dtype.kind == "f":
            value = np.round(np.clip(value, 0, 1) * 255).astype(np.uint8)
        Image.fromarray(np.ascontiguousarray(value.transpose(1, 2, 0))).save(out, "PNG")
        return out.getvalue()

    def preprocess(self, params: dict) -> nn.Module:
        """By the `mean` and `std` that the system was made for."""
        return Normalise(params["mean"], params["std"])

    def arguments(self, shape: dict) -> dict:
        return {"size": tuple(shape["size"])}

    def tokens(self, width: int, size: tuple[int, int]) -> nn.Module:
        return Picture(width, size)

    def blank(self, size: tuple[int, int]) -> Blank:
        return (3, *size), torch.float32

    def augment(
        self, x: Tensor, keep: Tensor | None, shape: dict, generator: torch.Generator, strength: float, whole: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Where the whole is asked for, pictures are only moved, by whole pixels, and mirrored: their noise stays what
        it is. The change is (B, 2, 3), as `affine_grid` takes it."""
        mirror = min(x.shape[-2:]) > PHOTO
        if not whole:
            return augment_images(x, generator, strength, mirror), None
        moved = movement(x, generator, strength, mirror)
        return self.follow(x, moved), moved

    def follow(self, x: Tensor, change: Tensor) -> Tensor:
        grid = F.affine_grid(change, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Picture(nn.Module):
    """(B, 3, H, W) -> Tokens: a convolutional stem and learned positions."""

    def __init__(self, width: int, size: tuple[int, int]):
        super().__init__()
        self.stem = ImageStem(width, size)
        self.positions = GridPositions(self.stem.grid, width)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tokens:
        return self.positions(self.stem(x))


def _open(cell: Any, place: Place) -> Image.Image:
    source = place.source(cell)
    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise Bad(f"more than {place.max_pixels:,} pixels") from error
    except Exception as error:
        raise Bad("not a picture") from error
    if picture.size[0] * picture.size[1] > place.max_pixels:
        picture.close()
        raise Bad(f"more than {place.max_pixels:,} pixels")
    if 0 in picture.size:
        raise Bad("a picture without pixels")
    return picture


def _ends(file: io.BufferedIOBase) -> bool:
    """Whether a PNG file has its last chunk. Pillow would read a file that lost only its end, with the checksums of its
    pixels."""
    at = file.tell()
    try:
        end = file.seek(0, io.SEEK_END)
        file.seek(max(0, end - len(PNG_END)))
        if file.read() == PNG_END:
            return True
        file.seek(0)
        return PNG_END in file.read()  # something was appended
    finally:
        file.seek(at)


@contextmanager
def no_pillow_warnings() -> Iterator[None]:
    """While it is entered Pillow does not warn of what is odd in a file, in any thread: a cell that cannot be used is
    listed anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _lies(picture: Image.Image) -> bool:
    """Whether EXIF says that the picture lies on its side; broken EXIF says nothing."""
    try:
        return picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return False


def _reduced(picture: Image.Image, side: int, ends: Sequence[float] | None) -> Image.Image:
    """A picture in RGB, by a whole number of times smaller, its long side no shorter than twice `side`: made of strips,
    since a large picture's other forms together take many times its own room."""
    by = max(picture.size) // (2 * side)
    if by < 2:
        return picture
    if picture.mode.startswith(("I", "F")) and ends is None:
        ends = _own_ends(np.asarray(picture).ravel()[:: picture.width * picture.height // LARGE + 1].astype(np.float64))
    wide, high = -(-picture.width // by), -(-picture.height // by)
    small, step = Image.new("RGB", (wide, high)), by * max(1, STRIP // (picture.width * by))
    for top in range(0, picture.height, step):
        strip = picture.crop((0, top, picture.width, min(top + step, picture.height)))
        small.paste(to_rgb(strip, ends).reduce(by), (0, top // by))
    small.getexif()[0x0112] = picture.getexif().get(0x0112, 1)
    return small


def to_rgb(picture: Image.Image, ends: Sequence[float] | None = None) -> Image.Image:
    """Any mode to RGB: gray of more than 8 bits is scaled, transparency laid on white, palettes and CMYK converted.
    ends: what is black and what is white in deep gray."""
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(_deep_gray(np.asarray(picture), ends)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, (255, 255, 255, 255)), clear).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _deep_gray(gray: np.ndarray, ends: Sequence[float] | None) -> np.ndarray:
    """Gray of more than 8 bits to uint8, from black to white. Where nothing says what these are, whole numbers have as
    many bits as nearly all of them need (8, 10, 12, 14, 16 or more), and decimals lie in [0, 1], [0, 255] or are scaled
    by their largest."""
    if gray.dtype.kind == "f" and not np.isfinite(gray).all():
        raise Bad("a pixel is not a finite number")
    gray = gray.astype(np.float64)
    low, high = ends if ends is not None else _own_ends(gray)
    return np.clip(np.round((gray - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def _own_ends(gray: np.ndarray) -> tuple[float, float]:
    most, low = float(np.quantile(gray, BRIGHT)), min(0.0, float(gray.min()))
    if (gray % 1 == 0).all():
        return low, next((2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if most < 2**bits), most)
    most = float(gray.max())
    return low, 1.0 if most <= 1 else 255.0 if most <= 255 else most


def _range(cells: list, place: Place) -> list[float] | None:
    """The least and the largest value of deep pictures, but for a thousandth of their pixels on either side; None where
    none is deep, or all are of one value."""
    found = []
    with no_pillow_warnings():
        for cell in cells:
            try:
                with _open(cell, place) as picture:
                    if not picture.mode.startswith(("I", "F")):
                        continue
                    pixels = np.asarray(picture).ravel()
                    pixels = pixels[:: max(1, len(pixels) // LARGE)].astype(np.float64)
            except Exception:  # unreadable ones are listed when they are decoded
                continue
            pixels = pixels[np.isfinite(pixels)]
            found.append(pixels[:: max(1, len(pixels) // 20_000)])
    every = np.concatenate(found) if found else np.zeros(0)
    low, high = np.quantile(every, [1 - BRIGHT, BRIGHT]) if len(every) else (0.0, 0.0)
    return [float(low), float(high)] if high > low else None


def letterbox(picture: Image.Image, high: int, wide: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """The picture resized with its aspect kept, centred on gray: uint8 (3, high, wide). size: its height and width,
    where it was made smaller already."""
    h, w, top, left = letterbox_place(*(size or (picture.height, picture.width)), high, wide)
    scale = min(high / picture.height, wide / picture.width)
    if (w, h) != picture.size:
        picture = picture.resize((w, h), Image.Resampling.BILINEAR, reducing_gap=2.0 if scale < 0.5 else None)
    box = np.full((3, high, wide), GRAY, np.uint8)
    box[:, top : top + h, left : left + w] = np.asarray(picture).transpose(2, 0, 1)
    return box


def letterbox_place(height: int, width: int, high: int, wide: int) -> tuple[int, int, int, int]:
    """What a picture of `height` by `width` becomes in the box: its height, its width, and where it starts."""
    scale = min(high / height, wide / width)
    h, w = max(1, min(high, round(height * scale))), max(1, min(wide, round(width * scale)))
    return h, w, (high - h) // 2, (wide - w) // 2


def named_files(glance: Glance, suffixes: tuple[str, ...]) -> str | None:
    """Why a column of texts holds paths of such files, or None."""
    ends = "|".join(s.replace(".", r"\.") for s in suffixes)
    hits = glance.matching(rf"({ends})\s*$", 0.5)
    if hits * 2 <= glance.count:
        return None
    some = next((v for v in glance.sample if v.strip().lower().endswith(suffixes)), suffixes[0])
    return counted(hits, glance.count, f"end in {Path(some.strip()).suffix} or alike")


def inline_files(glance: Glance, media: str, looks: Callable[[bytes], bool]) -> str | None:
    """Why a column of texts holds the bytes of such files themselves, or None."""
    hits = 0
    for cell in glance.sample[:50]:
        try:
            inside = inline(cell)
        except Bad:
            inside = None
        hits += cell.lstrip().startswith(f"data:{media}/") or (inside is not None and looks(inside[:16]))
    some = len(glance.sample[:50])
    return counted(hits, some, f"looked at hold {media} bytes as text") if 2 * hits > some else None


def head_bytes(cell: Any) -> bytes | None:
    """The first bytes of a cell that holds bytes, or None."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    return bytes(cell[:16]) if isinstance(cell, (bytes, bytearray)) else None


def looks_like_image(head: bytes) -> bool:
    """Whether bytes start like a picture file."""
    return (
        head.startswith(MAGIC)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in (b"ftypavif", b"ftypavis")
    )
