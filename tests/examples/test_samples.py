"""What is read of pictures and texts, and which samples are held out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from uniclip import samples, text


def test_pictures_are_cut_to_their_central_square_on_white(tmp_path):
    wide = np.zeros((32, 96, 4), np.uint8)
    wide[:, 32:64] = (255, 0, 0, 255)  # all around is transparent
    wide[:16, 32:64, 3] = 0
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = samples.square(tmp_path / "wide.png")
    assert (pixels[:28] == 255).all()
    assert (pixels[36:, 4:-4] == (255, 0, 0)).all()  # the filter looks a little across the edges


def test_sixteen_bit_greys_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    pixels = samples.square(tmp_path / "ramp.png")
    assert (np.abs(pixels.astype(int) - (ramp >> 8)[..., None]) <= 1).all()


def rows(bases: list[str | None]) -> list[samples.Row]:
    """Each with a picture of its own, whose colour is its number."""
    images = (np.full((2, 2, 3), i, np.uint8) for i in range(len(bases)))
    extra = samples.Text("extra", "de")
    return [
        samples.Row([image], [f"caption {i}"], [extra], base)
        for i, (image, base) in enumerate(zip(images, bases, strict=True))
    ]


def numbers(part: samples.Samples) -> list[int]:
    return part.images[:, 0, 0, 0, 0].tolist()


def test_random_split_holds_out_a_tenth_of_the_samples():
    every = samples.merge(rows([str(i // 5) for i in range(200)]), "here")
    kept, held_out = samples.split(every, 3, "random")
    assert (len(kept), len(held_out)) == (180, 20)
    assert sorted(numbers(kept) + numbers(held_out)) == list(range(200))
    for part in (kept, held_out):
        assert part.captions == [[f"caption {i}"] for i in numbers(part)]
        assert part.extra_texts == [[("extra", "de")]] * len(part)
        assert part.concepts.tolist() == every.concepts[numbers(part)].tolist()
    assert set(held_out.concepts.tolist()) & set(kept.concepts.tolist())
    assert samples.split(every, 3, "random")[1].captions == held_out.captions
    assert samples.split(every, 4, "random")[1].captions != held_out.captions


def test_base_split_keeps_variants_together():
    every = samples.merge(rows([str(i // 5) if i < 150 else None for i in range(200)]), "here")
    for seed in range(5):
        kept, held_out = samples.split(every, seed)
        assert 20 <= len(held_out) < 25
        assert not set(held_out.concepts.tolist()) & set(kept.concepts.tolist())
    with pytest.raises(samples.DataError, match="--split base: all 3 samples are variants of one thing"):
        samples.split(samples.merge(rows(["a"] * 3), "here"), 0)


def test_what_shares_a_picture_or_a_base_is_one_concept():
    red, green, blue, grey = (np.full((2, 2, 3), i, np.uint8) for i in range(4))
    a = samples.Row([red, grey], ["a"], [samples.Text("A")], "one", ("kind",))
    again = samples.Row([red, blue], ["b"], [samples.Text("A"), samples.Text("B")], "two")
    variant = samples.Row([green, blue], ["c"], base="two")
    by_second_picture = samples.Row([blue, blue], ["d"], base="three")
    alone = samples.Row([grey, green], ["e"])  # shares with none what stands at the same place
    merged = samples.merge([a, again, variant, by_second_picture, alone], "here")
    assert merged.captions == [["a", "b"], ["c"], ["d"], ["e"]]
    assert merged.extra_texts[0] == [("A", ""), ("B", "")]
    assert merged.groups == [("kind",), (), (), ()]
    first, *others, last = merged.concepts.tolist()
    assert others == [first] * 2
    assert last != first


def test_text_table_draws_and_bags():
    texts = [["one", "two words"], ["three"], ["", "four", "five"]]
    table = text.TextTable(texts)
    flat = [t for of_sample in texts for t in of_sample]
    rows = torch.tensor([4, 0, 3, 1])
    ids, starts = table.bags.take(rows)
    assert [ids[a:b].tolist() for a, b in pairwise(starts.tolist())] == [text.features(flat[row]) for row in rows]
    torch.manual_seed(0)
    chosen = torch.tensor([0, 1, 2]).repeat(100)
    drawn = table.draw(chosen)
    assert [set(drawn[i::3].tolist()) for i in range(3)] == [{0, 1}, {2}, {3, 4, 5}]
    assert set(table.draw(chosen, torch.tensor([1, 1, 2]))[2::3].tolist()) == {3, 4}
    assert text.features("light dark") != text.features("dark light")
