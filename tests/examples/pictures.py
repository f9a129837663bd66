"""Small pictures to train on."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image


def picture(seed: int) -> Image.Image:
    """A few coloured rectangles on white."""
    random = np.random.default_rng(seed)
    pixels = np.full((80, 80, 3), 255, np.uint8)
    for _ in range(4):
        x, y = random.integers(0, 60, 2)
        pixels[y : y + 20, x : x + 20] = random.integers(0, 256, 3)
    return Image.fromarray(pixels)


def png(seed: int) -> bytes:
    buffer = BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()
