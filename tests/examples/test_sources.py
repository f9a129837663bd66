"""Where samples come from: captions.csv, WebDataset shards, emojis, and the errors that name file and line."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from uniclip import emojis, samples, sources

from tests.examples.pictures import picture, png


def table(tmp_path: Path, content: bytes) -> Path:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(png(1)[:100])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "captions.csv").write_bytes(content)
    return tmp_path / "captions.csv"


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"image,caption\na.png,one\nnone.png,two\n", 3, "image none.png does not exist"),
        (b"image,caption\na.png,one\n\nbroken.png,two\n", 4, "image broken.png cannot be read"),
        (b"image,caption\ntext.png,two\n", 2, "image text.png cannot be read"),
        (b'image,caption\na.png,one\na.png,"  "\n', 3, "empty caption"),
        (b"image,caption\n,one\n", 2, "empty image"),
        (b"image,caption\na.png,one\na.png\n", 3, "1 fields where the header has 2"),
        (b"image,caption\na.png,one,two\n", 2, "3 fields where the header has 2"),
        (b'image,caption\na.png,"two\nlines"\na.png,"never closed\n\n', 4, "not valid CSV"),
        (b"image,caption\na.png,one\na.png,\xff\n", 3, "not valid CSV"),
        (b"picture,caption\na.png,one\n", 1, "no column image"),
        (b"a,b\n", 1, "no column caption or image"),
        (b"", 1, "empty file"),
    ],
)
def test_csv_error_names_file_and_line(tmp_path, content, line, what):
    path = table(tmp_path, content)
    with pytest.raises(samples.DataError) as error:
        sources.load(str(tmp_path), None)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert what in str(error.value)


def test_missing_table_and_unknown_source(tmp_path):
    with pytest.raises(samples.DataError, match=r"captions\.csv: cannot be opened"):
        sources.load(str(tmp_path), None)
    with pytest.raises(samples.DataError, match=r"neither a folder with captions\.csv nor"):
        sources.load(str(tmp_path / "nowhere"), None)


def test_too_few_pictures(tmp_path):
    table(tmp_path, b"image,caption\na.png,one\n")
    with pytest.raises(samples.DataError, match="at least 2 different pictures, found 1"):
        sources.load(str(tmp_path), None)


def test_csv_rows_of_an_image_and_equal_pictures_are_one_sample(tmp_path):
    for name, seed in {"a.png": 0, "b.png": 1, "copy of a.png": 0}.items():
        picture(seed).save(tmp_path / name)
    (tmp_path / "captions.csv").write_bytes(
        b"\xef\xbb\xbfcaption,image,source\r\n"
        b"one,a.png,x\r\n"
        b'"two, with a comma",b.png,x\r\n'
        b"\r\n"
        b'"three on\r\ntwo lines",a.png,x\r\n'
        b"four,copy of a.png,x\r\n"
        b"one,a.png,x\r\n"
    )
    loaded = sources.load(str(tmp_path), None)
    assert loaded.captions == [["one", "three on\r\ntwo lines", "four"], ["two, with a comma"]]
    assert loaded.extra_texts == [[], []]
    assert loaded.images.shape == (2, 1, 3, samples.IMAGE_SIZE, samples.IMAGE_SIZE)
    assert loaded.images.dtype == torch.uint8
    assert sources.load(str(tmp_path), 3).captions == [["one", "three on\r\ntwo lines"], ["two, with a comma"]]


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))


def test_webdataset_shards(tmp_path):
    write_shard(tmp_path / "s-000.tar", {"a.png": png(0), "a.txt": b"one\n\n2 \n", "b.png": png(1), "b.txt": b"three"})
    write_shard(tmp_path / "s-001.tar", {"c.txt": "vier ä".encode(), "c.png": png(2)})
    loaded = sources.load(str(tmp_path / "s-{000..001}.tar"), None)
    assert loaded.captions == [["one", "2"], ["three"], ["vier ä"]]
    np.testing.assert_array_equal(loaded.images[2, 0].permute(1, 2, 0), samples.square(BytesIO(png(2))))
    assert len(sources.load(str(tmp_path / "s-{000..001}.tar"), 2)) == 2


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"a.txt": b"one"}, "sample a: no image"),
        ({"a.png": png(0)}, "sample a: no caption"),
        ({"a.png": png(0), "a.txt": b" \n"}, "sample a: empty caption"),
        ({"a.png": png(0), "a.txt": b"\xff"}, "sample a: txt is not UTF-8"),
        ({"a.png": png(0)[:60], "a.txt": b"one"}, "sample a: image a.png cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_webdataset_error_names_shard_and_sample(tmp_path, members, what):
    write_shard(tmp_path / "s-000.tar", {"x.png": png(5), "x.txt": b"fine"})
    bad = tmp_path / "s-001.tar"
    if members is None:
        bad.write_bytes(b"no tar at all" * 100)
    else:
        write_shard(bad, members)
    with pytest.raises(samples.DataError) as error:
        sources.load(str(tmp_path / "s-{000..001}.tar"), None)
    assert str(error.value).startswith(f"{bad}: {what}")


def test_missing_shard(tmp_path):
    with pytest.raises(samples.DataError, match=r"none-0\.tar: does not exist"):
        sources.load(str(tmp_path / "none-{0..1}.tar"), None)


def test_emojis_and_their_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = sources.load(None, 60)
    (cache,) = (tmp_path / "uniclip-kernels").iterdir()
    marked = np.load(cache)
    assert marked.shape == (120, samples.IMAGE_SIZE, samples.IMAGE_SIZE, 3)
    marked[0] = 7
    np.save(cache, marked)
    second = sources.load(None, 60)
    assert (second.images[0, 0] == 7).all(), "the second time comes from the cache"
    assert torch.equal(first.images[1:], second.images[1:])
    assert first.captions[0] == ["keycap #"]
    assert first.groups[0] == ("Symbols", "keycap")
    # Two artists' drawings of a thing are more alike than those of two things.
    small = F.avg_pool2d(first.images.flatten(0, 1).float(), 8).view(len(first), 2, -1)
    small = F.normalize(small - small.mean(0), dim=2)
    alike = small[:, 0] @ small[:, 1].T
    assert alike.diagonal().mean() > alike.mean() + 3 * alike.std() / len(first) ** 0.5


def points(code: str) -> tuple[int, ...]:
    return emojis._points_in(code)


@pytest.mark.parametrize(
    ("variants", "base"),
    [
        (("1F44B", "1F44B-1F3FB", "1F44B-1F3FF"), "1F44B"),  # waving hand
        (("1F3C4", "1F3C4-1F3FD-200D-2640-FE0F", "1F3C4-200D-2642"), "1F3C4"),  # surfing
        (("1F9D1-200D-1F33E", "1F468-1F3FB-200D-1F33E", "1F469-200D-1F33E"), "1F9D1-1F33E"),  # farmer
        (("1F6B6", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F"), "1F6B6"),  # walking, facing right
        (("1F469-200D-1F9B0", "1F9D1-1F3FF-200D-1F9B2", "1F468"), "1F9D1"),  # a person's hair
        (("1F46B", "1F46D-1F3FC", "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF"), "1F9D1-1F91D-1F9D1"),  # holding hands
        (("1F491", "1F469-200D-2764-FE0F-200D-1F468"), "1F9D1-2764-1F9D1"),  # couple with heart
        (("2640", "2640-FE0F"), "2640"),  # the female sign alone
        (("1F3FB",), "1F3FB"),  # a skin tone alone
    ],
)
def test_variants_of_an_emoji_have_one_base(variants, base):
    assert {emojis._base(points(variant)) for variant in variants} == {points(base)}
    assert emojis._base(points("1F1F3-1F1F4")) != emojis._base(points("1F1F8-1F1EF"))  # flags are no variants
