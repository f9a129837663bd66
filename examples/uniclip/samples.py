"""Pictures and their texts as tensors: what a sample is, and which samples are held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import crc32

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

IMAGE_SIZE = 64  # side of the stored pictures in pixels; augmentation crops from these
HELD_OUT = 0.1  # share of the samples that is never trained on


class DataError(ValueError):
    """A fault in the given data; the message begins with the file, and the line or the sample in it."""


class Row(NamedTuple):
    """One picture, ``(S, S, 3)`` uint8, with captions, and texts that serve in training alone (translations)."""

    image: np.ndarray
    captions: Sequence[str]
    extra_texts: Sequence[str] = ()


@dataclass
class Samples:
    """``N`` different pictures and what is written about each.

    images       (N, 3, S, S) uint8
    captions     N lists of at least one text; evaluation asks for these
    extra_texts  N lists, possibly empty, of texts used in training alone
    """

    images: Tensor
    captions: list[list[str]]
    extra_texts: list[list[str]]

    def __len__(self) -> int:
        return len(self.captions)

    def select(self, indices: list[int]) -> Samples:
        return Samples(
            self.images[indices],
            [self.captions[i] for i in indices],
            [self.extra_texts[i] for i in indices],
        )

    def fingerprint(self) -> int:
        """The same for the same pictures and texts in the same order."""
        return crc32(repr((self.captions, self.extra_texts)).encode(), crc32(self.images.numpy()))


def merge(rows: Iterable[Row], source: str) -> Samples:
    """Rows with the very same pixels become one sample, which has the texts of all of them.

    Equal pictures cannot be told apart: as two samples each would be a negative of the other, and one could be
    trained on while the other is held out. (222 of the 3953 OpenMoji pairs repeat a drawing, such as the flags of
    Norway and Svalbard.)
    """
    index: dict[bytes, int] = {}
    images: list[np.ndarray] = []
    captions: list[dict[str, None]] = []  # a dict keeps the order and drops repeats
    extra_texts: list[dict[str, None]] = []
    for row in rows:
        i = index.setdefault(row.image.tobytes(), len(images))
        if i == len(images):
            images.append(row.image)
            captions.append({})
            extra_texts.append({})
        captions[i].update(dict.fromkeys(row.captions))
        extra_texts[i].update(dict.fromkeys(row.extra_texts))
    if len(images) < 2:
        raise DataError(f"{source}: training takes at least 2 different pictures, found {len(images)}")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Samples(pixels, [list(texts) for texts in captions], [list(texts) for texts in extra_texts])


def split(samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """Training and held-out samples.

    The held-out tenth is drawn by the seed alone, from whole samples: all texts of a held-out picture, translations
    too, are held out with it, and no picture stands on both sides. Different drawings of a kind (the five skin tones
    of one gesture, say) are different samples and may stand on different sides.
    """
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, round(HELD_OUT * len(samples)))
    return samples.select(sorted(order[held_out:])), samples.select(sorted(order[:held_out]))


def square(file: Path | BinaryIO) -> np.ndarray:
    """The central square of a picture, on white, as ``(S, S, 3)`` uint8. Raises what PIL raises."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I;16"):  # PIL would cut it off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    return np.asarray(ImageOps.fit(canvas.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def read_image(file: Path | BinaryIO, where: str, name: str) -> np.ndarray:
    """`square`, with a `DataError` that says where the image is named."""
    try:
        return square(file)
    except FileNotFoundError:
        raise DataError(f"{where}: image {name} does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: image {name} cannot be read: {error}") from None
