"""Pictures as published weights were evaluated on them: resized and cropped as timm, open_clip and transformers do
it."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from plait.errors import PlaitError

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def crop(
    picture: Image.Image, high: int, wide: int, *, crop_pct: float, crop_mode: str, interpolation: str
) -> np.ndarray:
    """RGB -> uint8 (3, high, wide): the middle of the picture resized to 1 / crop_pct of the size.

    crop_mode: "center" keeps the aspect and lets the picture cover the box, "floor" too, with a middle that is rounded
    down; "squash" does not keep it.
    """
    tall, broad, top, left = crop_place(picture.height, picture.width, high, wide, crop_pct, crop_mode)
    if (broad, tall) != picture.size:
        picture = picture.resize((broad, tall), FILTERS[interpolation])
    return np.asarray(picture)[-top : high - top, -left : wide - left].transpose(2, 0, 1)


def crop_place(
    height: int, width: int, high: int, wide: int, crop_pct: float, crop_mode: str, interpolation: str = ""
) -> tuple[int, int, int, int]:
    """What a picture of `height` by `width` becomes: its height, its width, and where it starts, seen from the crop."""
    tall, broad = int(high / crop_pct), int(wide / crop_pct)
    if crop_mode in ("center", "floor"):
        tall, broad = _covering(height, width, tall, broad)
    elif crop_mode != "squash":
        raise PlaitError(f"crop_mode: got {crop_mode!r}, expected 'center', 'floor' or 'squash'")
    middle = math.floor if crop_mode == "floor" else round
    return tall, broad, -middle((tall - high) / 2), -middle((broad - wide) / 2)


def _covering(height: int, width: int, tall: int, broad: int) -> tuple[int, int]:
    """(H, W) of the picture with its aspect kept and its tighter side at the box's; a square's long side rounds
    down."""
    ratio = min(height / tall, width / broad)
    if tall != broad:
        return round(height / ratio), round(width / ratio)
    short = min(height, width)
    high, wide = (tall if side == short else int(tall * side / short) for side in (height, width))
    return high, wide
