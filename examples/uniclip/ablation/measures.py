"""What a trained model is measured by, on concepts that it never saw. All are shares from 0 to 1, but for the median ranks."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from .. import augment
from ..model import UniCLIP
from ..retrieval import CHUNK, HeldOut, chance, embed_pictures, embed_texts, ranks, recalls, similarities
from ..samples import Samples

LEVELS = {"group": 0, "subgroup": 1}  # of Unicode


def measure(model: UniCLIP, train: Samples, test: Samples) -> dict[str, float]:
    """Of pictures by the first artist, but for what says otherwise."""
    held_out = HeldOut.of(test)
    similarity = similarities(model, held_out)
    found = recalls(similarity, held_out.right)
    for way, s, right in (
        ("text_to_image", similarity, held_out.right),
        ("image_to_text", similarity.T, held_out.right.T),
    ):
        found[f"{way}_median_rank"] = 1 + ranks(s, right).median().item()
    found |= _across_artists(model, test)
    features = [_features(model, part.images[:, 0]) for part in (train, test)]
    for level in LEVELS:
        found[f"zero_shot_{level}"] = _zero_shot(model, test, level)
        found[f"probe_{level}"] = _probe(*features, train, test, level)
    return found


def by_chance(train: Samples, test: Samples) -> dict[str, float]:
    """What guessing gives. A probe guesses among all groups that it was fitted to, zero-shot among those of the test."""
    right = HeldOut.of(test).right
    found = {f"text_to_image_recall@{k}": chance(right, k) for k in (1, 5, 10)}
    found |= {f"image_to_text_recall@{k}": chance(right.T, k) for k in (1, 5, 10)}
    found["across_artists_recall@1"] = 1 / len(test)
    for level in LEVELS:
        for measure, part in (("zero_shot", test), ("probe", train)):
            found[f"{measure}_{level}"] = 1 / len(set(_labels(part, level)) - {""})
    return found


def _across_artists(model: UniCLIP, test: Samples) -> dict[str, float]:
    """From a drawing by one artist to that by the other, the mean of both ways."""
    first, second = (embed_pictures(model, test.images[:, artist]) for artist in (0, 1))
    similarity, right = first @ second.T, torch.eye(len(test), dtype=torch.bool)
    both = [(ranks(s, right) < 1).float().mean().item() for s in (similarity, similarity.T)]
    return {"across_artists_recall@1": sum(both) / 2}


def _labels(samples: Samples, level: str) -> np.ndarray:
    """Of each sample the name of its group, "" where it is not known."""
    return np.array([group[LEVELS[level]] if group else "" for group in samples.groups])


def _zero_shot(model: UniCLIP, test: Samples, level: str) -> float:
    """The nearest of the names of groups, by the mean over groups of how often it is right: most emojis are of people."""
    labels = _labels(test, level)
    names = sorted(set(labels) - {""})
    nearest = (embed_pictures(model, test.images[:, 0]) @ embed_texts(model, names).T).argmax(1)
    return _balanced(labels, np.array(names)[nearest.numpy()])


def _probe(features: np.ndarray, of_test: np.ndarray, train: Samples, test: Samples, level: str) -> float:
    """A linear classifier on the frozen encoder's features, fitted to the training samples; measured as in zero-shot."""
    labels = _labels(train, level)
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(-1, 5, 7), class_weight="balanced"))
    probe.fit(features[labels != ""], labels[labels != ""])
    return _balanced(_labels(test, level), probe.predict(of_test))


def _balanced(labels: np.ndarray, found: np.ndarray) -> float:
    known = labels != ""
    is_right = (labels == found)[known]
    return float(np.mean([is_right[labels[known] == label].mean() for label in set(labels[known])]))


@torch.no_grad()
def _features(model: UniCLIP, images: Tensor) -> np.ndarray:
    """(N, C): each channel of the last feature map, as its mean over the picture."""
    rows, until_flat = [], nn.Sequential(*list(model.image)[:-1])
    for some in images.split(CHUNK):
        pictures = augment.apply(some, augment.identity(len(some)), model.image_size)
        rows.append(until_flat(pictures).mean((2, 3)))
    return torch.cat(rows).numpy()
