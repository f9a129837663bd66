"""What the ablation trains: each of UniCLIP's parts left out, other losses, other domains, and other ways of training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from ..objective import DOMAINS, OBJECTIVES, Objective

IMAGE_SIZE, WIDTH = 32, 32  # half of what train.py has, for so many runs
EPOCHS, BATCH_SIZE = 12, 128
FULL = "MP-NCE, τ and b a pair"


@dataclass(frozen=True)
class Configuration:
    """One way of training, which the report calls ``name`` in its part ``part``."""

    part: str
    name: str
    objective: Objective
    epochs: int = EPOCHS
    batch_size: int = BATCH_SIZE
    augmentation: float = 1.0

    @property
    def label(self) -> str:
        return f"{self.name}, aware" if self.objective.aware else self.name

    @property
    def settings(self) -> dict:
        """All that decides the numbers, in what JSON can keep."""
        objective = asdict(self.objective) | {"loss": self.objective.loss.__name__}
        how = {"epochs": self.epochs, "batch_size": self.batch_size, "augmentation": self.augmentation}
        return {"objective": objective, **how}


def _with_and_without_awareness(*of: Configuration) -> Iterator[Configuration]:
    for configuration in of:
        for aware in (False, True):
            yield replace(configuration, objective=replace(configuration.objective, aware=aware))


def _losses_and_similarities() -> Iterator[Configuration]:
    part, full = "parts", OBJECTIVES["uniclip"]
    yield Configuration(part, "CLIP, separate spaces", OBJECTIVES["clip"])
    yield Configuration(part, "CLIP + SimCLR", OBJECTIVES["simclr+clip"])
    yield from _with_and_without_awareness(
        Configuration(part, "InfoNCE, one positive drawn", OBJECTIVES["infonce"]),
        Configuration(part, "MIL-NCE", OBJECTIVES["mil-nce"]),
        Configuration(part, "SupCon", OBJECTIVES["supcon"]),
        Configuration(part, "MP-NCE, one τ", replace(full, similarity="shared")),
        Configuration(part, "MP-NCE, τ a pair", replace(full, similarity="temperature")),
        Configuration(part, FULL, full),
    )


def _domains() -> Iterator[Configuration]:
    """From the same two drawings and texts: how many domains they are, and one temperature instead of one a pair."""
    plain = replace(OBJECTIVES["uniclip"], aware=False)
    for name, domains in {
        "two drawings, K = 2 (picture, text)": "pictures",
        "two drawings, K = 3 (OpenMoji, Twemoji, text)": "artists",
        "two drawings, K = 8 (and each language)": "languages",
    }.items():
        yield Configuration("domains", name, replace(plain, sources=DOMAINS[domains]))
    one = replace(plain, similarity="shared", sources=DOMAINS["pictures"])
    yield Configuration("domains", "two drawings, one τ", one)
    yield Configuration("domains", "two drawings, CLIP", replace(OBJECTIVES["clip"], sources=DOMAINS["pictures"]))


def _ways_of_training() -> Iterator[Configuration]:
    full = Configuration("training", FULL, OBJECTIVES["uniclip"])
    for strength in (0.5, 2.0, 3.0):
        yield from _with_and_without_awareness(
            replace(full, part=f"augmentation × {strength:g}", augmentation=strength)
        )
    plain = replace(full, objective=replace(full.objective, aware=False))
    for size in (64, 256):
        yield replace(plain, part=f"batch of {size}", batch_size=size)
    for temperature in (0.03, 0.2):
        yield replace(
            plain, part=f"first τ {temperature:g}", objective=replace(plain.objective, temperature=temperature)
        )
    for weight in (0.25, 4.0):
        yield replace(plain, part=f"w = {weight:g} within a kind", objective=replace(plain.objective, weight=weight))
    longer = (plain, full, Configuration("", "CLIP, separate spaces", OBJECTIVES["clip"]))
    for configuration in longer:
        yield replace(configuration, part="twice as long", epochs=2 * EPOCHS)


CONFIGURATIONS = (*_losses_and_similarities(), *_domains(), *_ways_of_training())
