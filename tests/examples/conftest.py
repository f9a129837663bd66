"""Makes the example importable, and a small data set for it."""

import sys
from pathlib import Path

import pytest

from tests.examples.pictures import picture

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """24 pictures, the first ten with two captions."""
    path = tmp_path_factory.mktemp("data")
    lines = ["image,caption"]
    (path / "pictures").mkdir()
    for i in range(24):
        picture(i).save(path / "pictures" / f"{i}.png")
        lines.append(f"pictures/{i}.png,number {i}")
        if i < 10:
            lines.append(f"pictures/{i}.png,the {i}th")
    (path / "captions.csv").write_text("\n".join(lines) + "\n")
    return path
