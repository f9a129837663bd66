"""Where samples come from: emojis, a folder with captions.csv, or WebDataset shards."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from . import emojis
from .samples import DataError, Row, Samples, merge, read_image


def load(source: str | None, limit: int | None) -> Samples:
    """Read ``source``: None for emojis, else a folder with captions.csv, or WebDataset shards.

    ``limit`` is how many rows to read (a line of captions.csv, a sample of a shard, an emoji), all if None.
    Raises `DataError`, which names the file and the line.
    """
    if source is None:
        rows = emojis.rows(limit)
    elif Path(source).is_dir():
        rows = csv_rows(Path(source), limit)
    elif source.endswith(".tar"):
        rows = islice(shard_rows(source), limit)
    else:
        raise DataError(f"{source}: neither a folder with captions.csv nor WebDataset shards (….tar)")
    return merge(tqdm(rows, "reading pictures", unit="", leave=False, disable=None), source or "emojis")


def csv_rows(folder: Path, limit: int | None = None) -> Iterator[Row]:
    """One row for each image that ``folder/captions.csv`` names, with the captions of all its lines.

    Its columns are image (a path from the folder) and caption; others are ignored.
    """
    table = folder / "captions.csv"
    first_line: dict[str, int] = {}
    captions: dict[str, list[str]] = {}
    for entry in islice(_csv_entries(table), limit):
        first_line.setdefault(entry.image, entry.line)
        captions.setdefault(entry.image, []).append(entry.caption)

    def read(name: str) -> Row:
        return Row([read_image(folder / name, f"{table}:{first_line[name]}", name)], captions[name])

    with ThreadPoolExecutor() as pool:
        yield from pool.map(read, captions)


class _Entry(NamedTuple):
    line: int
    image: str
    caption: str


def _csv_entries(table: Path) -> Iterator[_Entry]:
    try:
        file = table.open("rb")
    except OSError as error:
        raise DataError(f"{table}: cannot be opened: {error.strerror}") from None
    with file:
        # Decoded line by line, so that a byte that is not UTF-8 has a line number too.
        reader = csv.reader((line.decode() for line in file), strict=True)
        header: list[str] | None = None
        while True:
            line = reader.line_num + 1  # where the record starts; it may span several lines
            try:
                fields = next(reader, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{table}:{line}: not valid CSV: {error}") from None
            if fields is None:
                break
            if header is None:
                header = [name.strip().lstrip("\ufeff") for name in fields]
                if missing := {"image", "caption"} - set(header):
                    raise DataError(f"{table}:{line}: no column {' or '.join(sorted(missing))} in {header}")
            elif fields:
                if len(fields) != len(header):
                    raise DataError(f"{table}:{line}: {len(fields)} fields where the header has {len(header)}")
                image, caption = (fields[header.index(name)].strip() for name in ("image", "caption"))
                for name, value in (("image", image), ("caption", caption)):
                    if not value:
                        raise DataError(f"{table}:{line}: empty {name}")
                yield _Entry(line, image, caption)
    if header is None:
        raise DataError(f"{table}:1: empty file; its first line must name the columns image and caption")


def shard_rows(shards: str) -> Iterator[Row]:
    """The samples of WebDataset shards, ``path/shard-{000..009}.tar``.

    A sample is an image (jpg, jpeg, png or webp) and a txt of the same name with one caption a line.
    """
    import webdataset

    try:
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            yield _shard_row(sample, f"{sample['__url__']}: sample {sample['__key__']}")
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: does not exist") from None
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        # webdataset appends the stream and the shard's name to the arguments of what went wrong
        shard = error.args[-1] if len(error.args) > 2 else shards
        raise DataError(f"{shard}: cannot be read: {error.args[0]}") from None


def _shard_row(sample: dict, where: str) -> Row:
    suffix = next((suffix for suffix in ("jpg", "jpeg", "png", "webp") if suffix in sample), None)
    if suffix is None:
        raise DataError(f"{where}: no image (jpg, jpeg, png or webp)")
    if "txt" not in sample:
        raise DataError(f"{where}: no caption (txt)")
    try:
        lines = sample["txt"].decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: txt is not UTF-8: {error}") from None
    captions = [line.strip() for line in lines if line.strip()]
    if not captions:
        raise DataError(f"{where}: empty caption")
    image = read_image(io.BytesIO(sample[suffix]), where, f"{sample['__key__']}.{suffix}")
    return Row([image], captions)
