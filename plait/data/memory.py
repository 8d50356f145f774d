"""Pictures and sounds that lie in memory, as the bytes of files: nothing of what they hold is lost."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from plait.errors import PlaitError

SIDE = 8  # an array with a side of fewer pixels is no picture
SLOWEST = 1000  # samples a second
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def in_memory(cell: Any) -> bytes | None:
    """The bytes of a file for a PIL picture, an array (H, W, 3 or 4), (3 or 4, H, W) or (H, W) of whole numbers of 8 or
    16 bits, and {"array", "sampling_rate"}, (rate, wave) or (wave, rate) of a sound; None of anything else.

    Raises PlaitError for an array that would have to be a picture and cannot be one.
    """
    if type(cell).__module__.split(".")[0] == "PIL" and hasattr(cell, "save"):
        return picture_file(cell)
    if isinstance(cell, dict) and {"array", "sampling_rate"} <= set(cell):
        return None if cell["array"] is None else sound_file(np.asarray(cell["array"]), int(cell["sampling_rate"]))
    if isinstance(cell, tuple) and len(cell) == 2:  # a sound as scipy and gradio, or as librosa and torchaudio give it
        rate, wave = cell if isinstance(cell[0], int) else cell[::-1]
        if isinstance(rate, int) and rate >= SLOWEST and hasattr(wave, "__array__") and np.ndim(wave) in (1, 2):
            return sound_file(np.asarray(wave), rate)
    if hasattr(cell, "__array__") and not isinstance(cell, (np.generic, str, bytes)):
        array = np.asarray(cell)
        if (pixels := _pixels(array)) is not None:
            return _array_file(pixels)
        if array.ndim > 2 and array.dtype.kind in "buif":
            raise PlaitError(
                f"an array of the shape {array.shape} is no picture: expected (H, W, C) or (C, H, W) with 1, 3 or 4 "
                f"channels and sides of {SIDE} pixels at least; cut it into columns, or give lists of steps (T, C)"
            )
    return None


def picture_file(picture: Any) -> bytes:
    """A PIL picture as PNG, or TIFF where its pixels are deeper than PNG's."""
    out = io.BytesIO()
    whole = picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    if not whole and picture.mode not in DEEP and picture.mode != "CMYK":
        picture = picture.convert("RGBA" if "A" in picture.mode or "a" in picture.mode else "RGB")
        whole = True
    picture.save(out, "PNG" if whole else "TIFF")
    return out.getvalue()


def sound_file(wave: np.ndarray, rate: int) -> bytes:
    """(S,), (S, C) or (C, S) in [-1, 1] as WAV of float32."""
    import soundfile

    out = io.BytesIO()
    wave = wave.T if wave.ndim == 2 and wave.shape[0] < wave.shape[1] else wave
    soundfile.write(out, wave, rate, format="WAV", subtype="FLOAT" if wave.dtype.kind == "f" else None)
    return out.getvalue()


def _pixels(x: np.ndarray) -> np.ndarray | None:
    """An array as (H, W) or (H, W, C), if it is a picture."""
    if x.dtype.kind not in "buif" or min(x.shape, default=0) == 0:
        return None
    if x.ndim == 2:
        return x if min(x.shape) >= SIDE and (x.dtype in (np.uint8, np.uint16) or x.dtype == bool) else None
    if x.ndim != 3:
        return None
    if x.shape[2] in (1, 3, 4) and min(x.shape[:2]) >= SIDE:
        return x[..., 0] if x.shape[2] == 1 else x
    if x.shape[0] in (1, 3, 4) and min(x.shape[1:]) >= SIDE:
        return x[0] if x.shape[0] == 1 else x.transpose(1, 2, 0)
    return None


def _array_file(x: np.ndarray) -> bytes:
    from PIL import Image

    if x.ndim == 2:
        x = x.astype(np.float32) if x.dtype.kind == "f" else x.astype(np.int32) if x.dtype.itemsize > 2 else x
    elif x.dtype != np.uint8:  # no file of colours holds more than 8 bits a channel here
        if x.dtype.kind in "if" and x.min() < 0:
            raise PlaitError(
                f"a picture of colours from {x.min():.3g} to {x.max():.3g}: expected numbers from 0 to 1, or from 0 to "
                "255; undo what normalised it"
            )
        top = (
            float(np.nanmax(x))
            if x.dtype.kind == "f"
            else float(np.iinfo(x.dtype).max)
            if x.dtype.kind == "u"
            else 255.0
        )
        scale = 255.0 if x.dtype == bool or (x.dtype.kind == "f" and top <= 1) else 255.0 / max(top, 255.0)
        x = np.clip(np.round(np.nan_to_num(x.astype(np.float64)) * scale), 0, 255).astype(np.uint8)
    return picture_file(Image.fromarray(np.ascontiguousarray(x)))
