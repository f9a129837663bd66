"""What is read of pictures and texts, and which samples are held out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
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


def test_split_holds_out_a_tenth_of_the_samples():
    n = 200
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 2, 2)
    every = samples.Samples(images, [[f"caption {i}"] for i in range(n)], [[f"extra {i}"] for i in range(n)])
    kept, held_out = samples.split(every, seed=3)
    assert (len(kept), len(held_out)) == (180, 20)
    numbers = [int(part.images[i, 0, 0, 0]) for part in (kept, held_out) for i in range(len(part))]
    assert sorted(numbers) == list(range(n))
    for part in (kept, held_out):
        for i in range(len(part)):
            number = int(part.images[i, 0, 0, 0])
            assert part.captions[i] == [f"caption {number}"]
            assert part.extra_texts[i] == [f"extra {number}"]
    assert samples.split(every, seed=3)[1].captions == held_out.captions
    assert samples.split(every, seed=4)[1].captions != held_out.captions


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
