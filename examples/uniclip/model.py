"""The three parts of UniCLIP that have weights: image encoder, text encoder and the augmentation-aware head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .augment import FIELDS
from .objective import TEXTS, Objective
from .text import BUCKETS, HIDDEN_ID, Bags


def norm(width: int) -> nn.GroupNorm:
    """Over 16 channels of one picture. BatchNorm would make a picture depend on which others are on its rank or in its chunk."""
    return nn.GroupNorm(width // 16, width)


class ResidualConv(nn.Module):
    """Two 3×3 convolutions around a skip; starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            norm(width),
        )
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class ResidualMLP(nn.Module):
    """A pre-normalised two-layer perceptron around a skip; starts as the identity."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ImageEncoder(nn.Sequential):
    """(N, 3, S, S) pictures in [0, 1] to (N, features): a small residual network on 4×4 patches.

    The last feature map is flattened, not pooled: where a thing stands in a drawing carries meaning.
    """

    def __init__(self, image_size: int, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        channels, side = 3, image_size
        for kernel, width in zip((4, *[3] * (len(widths) - 1)), widths, strict=True):
            stride, padding = (4, 0) if kernel == 4 else (2, 1)
            layers += [
                nn.Conv2d(channels, width, kernel, stride, padding, bias=False),
                norm(width),
                nn.ReLU(inplace=True),
                ResidualConv(width),
            ]
            channels, side = width, (side + 2 * padding - kernel) // stride + 1
        super().__init__(*layers, nn.Flatten())
        self.features = channels * side * side


class AugmentationAwareHead(nn.Module):
    """Image features and what was done to the picture, to an embedding (section 3.1 of the paper).

    The encoder sees only pixels, so it cannot know that a dark picture was darkened. The head is told, by the vector
    of `augment.FIELDS`, and can undo it. ``aware=False`` leaves the vector out.
    """

    def __init__(self, features: int, width: int, embedding: int, aware: bool) -> None:
        super().__init__()
        self.features = nn.Linear(features, width)
        self.augmentation = (
            nn.Sequential(nn.Linear(len(FIELDS), 64), nn.GELU(), nn.Linear(64, width)) if aware else None
        )
        self.layers = nn.Sequential(ResidualMLP(width, width), nn.LayerNorm(width), nn.Linear(width, embedding))

    def forward(self, features: Tensor, augmentation: Tensor) -> Tensor:
        hidden = self.features(features)
        if self.augmentation is not None:
            hidden = hidden + self.augmentation(augmentation)
        return self.layers(hidden)


class TextEncoder(nn.Module):
    """Bags of text features to (N, embedding)."""

    def __init__(self, width: int, hidden: int, embedding: int) -> None:
        super().__init__()
        # One more row than there are features: the hidden ones point to it, and it is left out of the mean.
        self.table = nn.EmbeddingBag(BUCKETS + 1, width, mode="mean", padding_idx=HIDDEN_ID, include_last_offset=True)
        nn.init.normal_(self.table.weight, std=0.02)
        self.layers = nn.Sequential(ResidualMLP(width, hidden), nn.LayerNorm(width), nn.Linear(width, embedding))

    def forward(self, texts: Bags) -> Tensor:
        return self.layers(self.table(*texts))


class UniCLIP(nn.Module):
    """One image encoder with a head, and another where two views meet in a space of their own; and one text encoder."""

    embedding = 256

    def __init__(self, objective: Objective, image_size: int, width: int) -> None:
        super().__init__()
        self.objective, self.image_size = objective, image_size
        self.image = ImageEncoder(image_size, (width, 2 * width, 4 * width))
        self.heads = nn.ModuleDict(
            {
                head: AugmentationAwareHead(self.image.features, 512, self.embedding, objective.aware)
                for _, head in objective.image_rows
            }
        )
        self.text = TextEncoder(256, 512, self.embedding)

    def encode_image(self, images: Tensor, augmentation: Tensor) -> Tensor:
        """(N, 3, S, S) pictures and (N, F) augmentation vectors to (N, D) embeddings that texts are compared with."""
        return self.heads["image"](self.image(images), augmentation)

    def encode_text(self, texts: Bags) -> Tensor:
        return self.text(texts)

    def forward(self, views: list[Tensor], augmentations: list[Tensor], texts: Bags) -> list[Tensor]:
        """Embeddings of a batch of N samples: one (N, D) tensor for each of the objective's rows, images first.

        views          (N, 3, S, S) augmented pictures, one tensor a view
        augmentations  (N, F) vectors of what was done, one tensor a view
        texts          bags of TEXTS·N texts, the first text of all samples first
        """
        features = self.image(torch.cat(views)).chunk(len(views))
        images = [self.heads[head](features[view], augmentations[view]) for view, head in self.objective.image_rows]
        return images + list(self.text(texts).chunk(TEXTS))
