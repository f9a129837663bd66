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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

IMAGE_SIZE = 64  # side of the stored pictures in pixels; augmentation crops from these
HELD_OUT = 0.1  # share of the samples that is never trained on
SPLITS = ("base", "random")


class DataError(ValueError):
    """A fault in the given data; the message begins with the file, and the line or the sample in it."""


class Text(NamedTuple):
    text: str
    language: str = ""  # that of the captions


class Row(NamedTuple):
    """Pictures of one thing, each ``(S, S, 3)`` uint8, with captions, and texts that serve in training alone (translations).

    base   the same for variants of one thing; None if there are none
    group  names of the kinds of things it is one of, the widest first
    """

    images: Sequence[np.ndarray]
    captions: Sequence[str]
    extra_texts: Sequence[Text] = ()
    base: str | None = None
    group: tuple[str, ...] = ()


@dataclass
class Samples:
    """``N`` different things, P pictures of each, and what is written about it.

    images       (N, P, 3, S, S) uint8
    captions     N lists of at least one text; evaluation asks for these
    extra_texts  N lists, possibly empty, of texts used in training alone
    concepts     (N,) int64, the same for samples that are variants of one thing, or share a picture
    groups       N tuples, as in `Row`
    """

    images: Tensor
    captions: list[list[str]]
    extra_texts: list[list[Text]]
    concepts: Tensor
    groups: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.captions)

    def select(self, indices: Tensor) -> Samples:
        lists = ([of_all[i] for i in indices.tolist()] for of_all in (self.captions, self.extra_texts, self.groups))
        captions, extra_texts, groups = lists
        return Samples(self.images[indices], captions, extra_texts, self.concepts[indices], groups)

    def fingerprint(self) -> int:
        """The same for the same pictures and texts in the same order."""
        return crc32(repr((self.captions, self.extra_texts)).encode(), crc32(self.images.numpy()))


def merge(rows: Iterable[Row], source: str) -> Samples:
    """Rows with the very same first picture become one sample, which has the texts of all of them.

    Equal pictures cannot be told apart: as two samples each would be a negative of the other, and one could be
    trained on while the other is held out. (222 of the 3953 emojis repeat a drawing of OpenMoji, such as the flags of
    Norway and Svalbard.)
    """
    # Dicts keep the order and drop repeats.
    merged: dict[bytes, tuple[Row, dict[str, None], dict[Text, None], set]] = {}
    for row in rows:
        _, captions, extra_texts, shared = merged.setdefault(row.images[0].tobytes(), (row, {}, {}, set()))
        captions.update(dict.fromkeys(row.captions))
        extra_texts.update(dict.fromkeys(row.extra_texts))
        shared.update((place, crc32(image)) for place, image in enumerate(row.images))
        if row.base is not None:
            shared.add(row.base)
    if len(merged) < 2:
        raise DataError(f"{source}: training takes at least 2 different pictures, found {len(merged)}")
    firsts, captions, extra_texts, shared = zip(*merged.values(), strict=True)
    pixels = torch.from_numpy(np.stack([np.stack(row.images) for row in firsts])).permute(0, 1, 4, 2, 3).contiguous()
    groups = [row.group for row in firsts]
    return Samples(pixels, list(map(list, captions)), list(map(list, extra_texts)), _connected(shared), groups)


def _connected(shared: Sequence[set]) -> Tensor:
    """(N,) numbers, equal where there is a way from one of the N sets to another over what sets share."""
    number: dict = {}
    ends = [(i, number.setdefault(label, len(number))) for i, labels in enumerate(shared) for label in labels]
    of_set, of_label = np.transpose(ends)
    size = len(shared) + len(number)
    graph = coo_array((np.ones(len(ends)), (of_set, of_label + len(shared))), shape=(size, size))
    return torch.from_numpy(connected_components(graph, directed=False)[1][: len(shared)]).long()


def split(samples: Samples, seed: int, by: str = "base") -> tuple[Samples, Samples]:
    """Training and held-out samples: a tenth, or what is drawn last goes beyond it, drawn by the seed alone.

    All texts of a held-out picture, translations too, are held out with it, and no picture stands on both sides.

    by  "base": all variants of a thing (the five skin tones of one gesture, say) stand on one side;
        "random": they may stand on different ones
    """
    concepts = samples.concepts if by == "base" else torch.arange(len(samples))
    order = torch.randperm(int(concepts.max()) + 1, generator=torch.Generator().manual_seed(seed))
    sizes = concepts.bincount()[order].cumsum(0)
    few = order[: 1 + int((sizes < round(HELD_OUT * len(samples))).sum())]
    held_out = torch.isin(concepts, few)
    if held_out.all():
        raise DataError(
            f"--split {by}: all {len(samples)} samples are variants of one thing, and none is left to train on"
        )
    return samples.select((~held_out).nonzero()[:, 0]), samples.select(held_out.nonzero()[:, 0])


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
