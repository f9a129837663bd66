"""The table of how losses behave has every loss, and calls what is wrong wrong."""

from __future__ import annotations

import itertools
import types
from dataclasses import replace

import pytest
import torch

from benchmarks import providers
from benchmarks.behaviour import behaviour, chosen, large, main
from benchmarks.definitions import expected
from benchmarks.devices import CPU
from benchmarks.providers import COMPILED, OURS, PROVIDERS, TUNED_COMPILED, Provider, ours
from benchmarks.session import missing

PACKAGES = (
    providers.OPEN_CLIP,
    providers.OPEN_CLIP_SIGMOID,
    providers.LINEAR_CROSS_ENTROPY,
    providers.METRIC_LEARNING_NT_XENT,
    providers.METRIC_LEARNING_SUP_CON,
    providers.LIGHTLY,
    providers.SENTENCE_TRANSFORMERS,
)
ON_GPU = (providers.INF_CL, providers.MEMEFF, providers.SIGLIP)


def planted(prepare, objective="InfoNCE", **changes) -> Provider:
    return Provider("planted", prepare, (objective,), 0, 1, **changes)


def changed(change):
    """Ours, with its results changed."""
    return planted(lambda batch: lambda: change(ours(batch)()))


def with_constant_temperature(batch):
    return ours(replace(batch, temperature=batch.temperature.detach()))


def another_each_time(batch):
    bits = itertools.count()
    return lambda: [t + next(bits) * 1e-7 for t in ours(batch)()]


def raises(batch):
    raise KeyError("its own fault")


def of(provider: Provider) -> dict[str, str]:
    return vars(behaviour(provider, provider.objectives[0], CPU()))


def test_ours_is_right():
    found = of(next(p for p in PROVIDERS if p.name == OURS))
    words = {"small_temperature": "right", "large": "fits", "two_positives": "right", "repeated": "same"}
    assert words.items() <= found.items()
    assert found["temperature_gradient"] == "right"
    assert 0.1 < float(found["gradient_error"]) < 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda r: [r[0] * 1.001, *r[1:]], "wrong"),
        (lambda r: [r[0], r[1] * 1.001, *r[2:]], "wrong"),
        (lambda r: [t * torch.nan for t in r], "NaN"),
        (lambda r: [t + torch.inf for t in r], "inf"),
    ],
    ids=["loss", "gradient", "NaN", "inf"],
)
def test_a_wrong_loss_is_called_wrong(change, word):
    found = of(changed(change))
    judged = ("gradient_error", "small_temperature", "two_positives", "temperature_gradient")
    assert {found[name] for name in judged} == {word}


def test_a_wrong_gradient_of_the_temperature_alone():
    found = of(changed(lambda r: [*r[:2], *(t * 2 for t in r[2:])]))
    assert (found["small_temperature"], found["temperature_gradient"]) == ("right", "wrong")
    assert of(planted(with_constant_temperature))["temperature_gradient"] == "none"


def test_what_it_cannot_do():
    found = of(planted(raises, pairs_only=True))
    assert (found["small_temperature"], found["repeated"], found["two_positives"]) == ("error", "error", "impossible")
    assert of(planted(another_each_time))["repeated"] == "differs"
    assert of(planted(ours, module="no_such_package"))["gradient_error"] == "no_such_package is not installed"


def test_memory():
    device = types.SimpleNamespace(total_memory=lambda: 2**34, extra_memory=None)
    linear = planted(ours)
    one_matrix = replace(linear, matrices=1)
    assert large(one_matrix, "InfoNCE", device, torch.float32, True) == "memory"
    assert large(linear, "InfoNCE", device, torch.float32, False) == "fits"
    for failure, word in ((MemoryError, "memory"), (KeyError, "error"), (None, "ran")):

        def extra_memory(provider, objective, n, d, dtype, failure=failure):
            assert n == 49152
            if failure:
                raise failure

        device.extra_memory = extra_memory
        assert large(linear, "InfoNCE", device, torch.float32, True) == word


def test_the_table_has_every_loss(tmp_path):
    on_gpu = types.SimpleNamespace(name="cuda")
    assert {*PACKAGES, *ON_GPU, OURS, COMPILED} <= {p.name for p, _ in chosen(on_gpu)}
    quick = tuple(p for p in PROVIDERS if p.name not in (COMPILED, TUNED_COMPILED))  # minutes of compilation
    main(["--out", str(tmp_path / "behaviour.md")], quick)
    rows = [line.split(" | ") for line in (tmp_path / "behaviour.md").read_text().splitlines() if line.startswith("| ")]
    cells = {(row[0].removeprefix("| "), row[1]): row[3:] for row in rows[2:]}
    assert {*PACKAGES, OURS, providers.EAGER} <= {name for name, _ in cells}
    assert {objective for name, objective in cells if name == OURS} == {"MP-NCE", "InfoNCE", "NT-Xent", "SupCon"}
    for provider, objective in chosen(CPU(), quick):
        error = cells[provider.name, objective][0]
        if missing(provider.module):
            assert "not installed" in error
        else:
            assert float(error) > 0, provider.name


def test_the_standard_is_no_loss_of_ours():
    """Nor of anyone's: one that is planted as the definition is what counts."""
    other = replace(planted(ours), expected=lambda batch, dtype=torch.float64: [2 * t for t in expected(batch, dtype)])
    assert of(other)["small_temperature"] == "wrong"
