"""Pictures as published weights were evaluated on them: resized and cropped as timm and open_clip do it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from plait.errors import PlaitError

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def crop(
    picture: Image.Image, high: int, wide: int, *, crop_pct: float, crop_mode: str, interpolation: str
) -> np.ndarray:
    """RGB -> uint8 (3, high, wide): the middle of the picture resized to 1 / crop_pct of the size.

    crop_mode: "center" keeps the aspect and lets the picture cover the box; "squash" does not keep it.
    """
    tall, broad = int(high / crop_pct), int(wide / crop_pct)
    if crop_mode == "center":
        tall, broad = _covering(picture, tall, broad)
    elif crop_mode != "squash":
        raise PlaitError(f"crop_mode: got {crop_mode!r}, expected 'center' or 'squash'")
    if (broad, tall) != picture.size:
        picture = picture.resize((broad, tall), FILTERS[interpolation])
    top, left = round((tall - high) / 2), round((broad - wide) / 2)
    return np.asarray(picture)[top : top + high, left : left + wide].transpose(2, 0, 1)


def _covering(picture: Image.Image, tall: int, broad: int) -> tuple[int, int]:
    """(H, W) of the picture with its aspect kept and its tighter side at the box's; a square's long side rounds
    down."""
    ratio = min(picture.height / tall, picture.width / broad)
    if tall != broad:
        return round(picture.height / ratio), round(picture.width / ratio)
    short = min(picture.size)
    high, wide = (tall if side == short else int(tall * side / short) for side in (picture.height, picture.width))
    return high, wide
