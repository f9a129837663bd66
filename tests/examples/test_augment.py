"""Augmentations do what their vector says."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from uniclip import augment


@pytest.fixture
def photos() -> torch.Tensor:
    torch.manual_seed(0)
    coarse = torch.rand(6, 3, 8, 8)
    return (F.interpolate(coarse, size=(64, 64), mode="bilinear") * 255).byte()


def vector(count: int, **fields: float) -> torch.Tensor:
    result = augment.identity(count)
    for name, value in fields.items():
        result[:, augment.FIELDS.index(name)] = value
    return result


def test_identity_is_zero_and_changes_nothing(photos):
    nothing = augment.identity(len(photos))
    assert nothing.shape == (len(photos), len(augment.FIELDS))
    assert not nothing.any()
    torch.testing.assert_close(augment.apply(photos, nothing, 64), photos / 255, atol=1e-5, rtol=0)


def test_crop_and_flip_show_the_box_that_the_vector_names(photos):
    half = math.log(0.5)
    corner = vector(len(photos), crop_x=-0.5, crop_y=0.5, log_crop_width=half, log_crop_height=half)
    expected = photos[:, :, 32:, :32] / 255
    torch.testing.assert_close(augment.apply(photos, corner, 32), expected, atol=1e-5, rtol=0)
    corner[:, augment.FIELDS.index("flip")] = 1
    torch.testing.assert_close(augment.apply(photos, corner, 32), expected.flip(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.8, 1.25])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_agrees_with_torchvision(photos, name, factor):
    import torchvision.transforms.v2.functional as tv

    mild = photos // 2 + 50  # nothing is cut off at 0 or 1
    done = augment.apply(mild, vector(len(mild), **{f"log_{name}": math.log(factor)}), 64)
    expected = getattr(tv, f"adjust_{name}")(mild / 255, factor)
    torch.testing.assert_close(done, expected, atol=1e-3, rtol=0)


def test_grayscale_and_blur_agree_with_torchvision(photos):
    import torchvision.transforms.v2.functional as tv

    gray = augment.apply(photos, vector(len(photos), grayscale=1), 64)
    torch.testing.assert_close(gray, tv.rgb_to_grayscale(photos / 255, 3), atol=1e-3, rtol=0)
    blurred = augment.apply(photos, vector(len(photos), blur=0.8), 64)
    expected = tv.gaussian_blur(photos / 255, 5, 0.8)
    torch.testing.assert_close(blurred[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5, rtol=0)


def test_hue_turns_colours_and_keeps_luma_and_grey(photos):
    mild = photos // 4 + 96
    luma = torch.tensor(augment.LUMA).view(3, 1, 1)
    turned = augment.apply(mild, vector(len(mild), hue=math.pi / 2), 64)
    torch.testing.assert_close((turned * luma).sum(1), (mild / 255 * luma).sum(1), atol=1e-3, rtol=0)
    assert (turned - mild / 255).abs().max() > 0.1
    once_round = augment.apply(mild, vector(len(mild), hue=2 * math.pi), 64)
    torch.testing.assert_close(once_round, mild / 255, atol=1e-4, rtol=0)
    grey = mild[:, :1].expand_as(mild)
    torch.testing.assert_close(augment.apply(grey, vector(len(grey), hue=1), 64), grey / 255, atol=2e-3, rtol=0)


def test_strength_is_how_far_views_are():
    torch.manual_seed(0)
    assert torch.equal(augment.draw(100, 0.0), augment.identity(100))
    torch.manual_seed(0)
    usual = augment.draw(4000)
    torch.manual_seed(0)
    strong = augment.draw(4000, 2.0)
    shared = (usual != 0) & (strong != 0)
    for name in augment.FIELDS:
        column = augment.FIELDS.index(name)
        assert strong[:, column].abs().mean() > 1.5 * usual[:, column].abs().mean(), name
        if name not in ("crop_x", "crop_y", "flip", "grayscale"):
            torch.testing.assert_close(strong[:, column][shared[:, column]], 2 * usual[:, column][shared[:, column]])


def test_drawn_vectors_vary_stay_in_range_and_act_per_picture(photos):
    torch.manual_seed(0)
    drawn = augment.draw(4000)
    assert drawn.isfinite().all()
    for name in augment.FIELDS:
        assert drawn[:, augment.FIELDS.index(name)].std() > 0, name
    width = drawn[:, augment.FIELDS.index("log_crop_width")].exp()
    x = drawn[:, augment.FIELDS.index("crop_x")].abs()
    assert (x <= (1 - width).abs() + 1e-6).all()

    mixed = drawn[: len(photos)]
    together = augment.apply(photos, mixed, 48)
    alone = torch.cat([augment.apply(photos[i : i + 1], mixed[i : i + 1], 48) for i in range(len(photos))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert together.min() >= 0
    assert together.max() <= 1
