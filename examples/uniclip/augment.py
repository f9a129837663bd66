"""Random augmentation of a whole batch at once, together with the vector that says what was done."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = [0.299, 0.587, 0.114]  # of red, green and blue

# What was done to a picture, one number each; all zero means: nothing.
FIELDS = (
    "crop_x",  # centre of the crop box, from the centre of the picture, in half widths
    "crop_y",
    "log_crop_width",  # of the box, relative to the picture
    "log_crop_height",
    "flip",  # 1 when mirrored left to right
    "log_brightness",
    "log_contrast",
    "log_saturation",
    "hue",  # turn of the colour circle, in radians
    "grayscale",  # 1 when all colour was taken out
    "blur",  # standard deviation in pixels of the result
)
_COLUMN = {name: i for i, name in enumerate(FIELDS)}

AREA = (0.6, 1.2)  # of the crop box, relative to the picture; above 1 the border is repeated
ASPECT = (4 / 5, 5 / 4)  # width / height
JITTER = 0.3  # largest |log| of brightness, contrast and saturation
HUE = 0.3  # largest turn, radians
SIGMA = (0.3, 1.0)  # of the blur
PROBABILITY = {"flip": 0.1, "color": 0.5, "grayscale": 0.05, "blur": 0.1}


def identity(count: int, device: torch.device | str = "cpu") -> Tensor:
    """(count, len(FIELDS)) float32 vectors of "nothing was done"."""
    return torch.zeros(count, len(FIELDS), device=device)


def draw(count: int, strength: float = 1.0) -> Tensor:
    """(count, len(FIELDS)) float32 random augmentations, from torch's global generator.

    ``strength`` times as far from the picture as it is, in logarithms and angles, and as often: 0 is `identity`.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high)

    def scaled(low: float, high: float) -> Tensor:
        return uniform(low, high) * strength

    def chance(probability: float) -> Tensor:
        return (torch.rand(count) < probability * strength).float()

    area, aspect = uniform(*AREA).pow(strength), scaled(*map(math.log, ASPECT)).exp()
    width, height = (area * aspect).sqrt(), (area / aspect).sqrt()
    color = chance(PROBABILITY["color"])
    columns = {
        "crop_x": uniform(-1, 1) * (1 - width).abs(),
        "crop_y": uniform(-1, 1) * (1 - height).abs(),
        "log_crop_width": width.log(),
        "log_crop_height": height.log(),
        "flip": chance(PROBABILITY["flip"]),
        "log_brightness": color * scaled(-JITTER, JITTER),
        "log_contrast": color * scaled(-JITTER, JITTER),
        "log_saturation": color * scaled(-JITTER, JITTER),
        "hue": color * scaled(-HUE, HUE),
        "grayscale": chance(PROBABILITY["grayscale"]),
        "blur": chance(PROBABILITY["blur"]) * scaled(*SIGMA),
    }
    return torch.stack([columns[name] for name in FIELDS], dim=1)


def apply(images: Tensor, vector: Tensor, size: int) -> Tensor:
    """Augment ``images`` as ``vector`` says.

    images  (N, 3, S, S) uint8
    vector  (N, len(FIELDS)), as from `draw` or `identity`
    returns (N, 3, size, size) float32, 0 to 1, in channels-last memory
    """
    column = {name: vector[:, i] for name, i in _COLUMN.items()}
    images = images.float().div_(255).contiguous(memory_format=torch.channels_last)
    images = _crop(images, column, size)
    images = _color(images, column)
    return _blur(images, column["blur"])


def _crop(images: Tensor, column: dict[str, Tensor], size: int) -> Tensor:
    theta = images.new_zeros(len(images), 2, 3)
    theta[:, 0, 0] = column["log_crop_width"].exp() * (1 - 2 * column["flip"])
    theta[:, 0, 2] = column["crop_x"]
    theta[:, 1, 1] = column["log_crop_height"].exp()
    theta[:, 1, 2] = column["crop_y"]
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _color(images: Tensor, column: dict[str, Tensor]) -> Tensor:
    """All five colour changes are linear, so each picture needs just one 3×3 matrix and one constant.

    In order: brightness scales, contrast scales about the mean luma, saturation about each pixel's luma
    (grayscale is saturation 0), hue turns the IQ plane of YIQ, and the result is cut to [0, 1] once.
    """
    yiq = images.new_tensor([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    brightness, contrast = column["log_brightness"].exp(), column["log_contrast"].exp()
    saturation = column["log_saturation"].exp() * (1 - column["grayscale"])

    turn = images.new_zeros(len(images), 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * column["hue"].cos()
    turn[:, 2, 1] = saturation * column["hue"].sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = yiq.inverse() @ turn @ yiq * (brightness * contrast)[:, None, None]

    pixels = images.permute(0, 2, 3, 1).flatten(1, 2)
    luma = brightness * (pixels.mean(1) @ yiq[0])
    pixels = torch.baddbmm(((1 - contrast) * luma)[:, None, None], pixels, matrix.mT).clamp_(0, 1)
    return pixels.view(len(images), *images.shape[2:], 3).permute(0, 3, 1, 2)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with five taps each way, of those pictures alone whose sigma is not 0."""
    (chosen,) = sigma.nonzero(as_tuple=True)
    taps = torch.arange(-2, 3, device=images.device)
    weight = torch.softmax(-0.5 * (taps / sigma[chosen, None]) ** 2, dim=1)[..., None, None, None]
    blurred = images[chosen]
    for dim in (2, 3):
        padded = F.pad(blurred, (0, 0, 2, 2) if dim == 2 else (2, 2, 0, 0), mode="replicate")
        size = blurred.shape[dim]
        blurred = sum(weight[:, i] * padded.narrow(dim, i, size) for i in range(5))
    images[chosen] = blurred
    return images
