"""The check that comes before every figure, and repetitions that are fair."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .problems import make_batch
from .providers import Provider, Step

#: Largest error of the loss (relative) and of gradients (relative to their largest entry) against float64.
#: A similarity of 14 in bfloat16, as competitors hold them, is off by 0.03: hence 2 and 4 of its epsilons.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (1.6e-2, 3.1e-2)}
CHECKED_SAMPLES = 512  # the float64 answer needs M x M matrices
LONG_STEP = 10.0  # seconds: a step that long is run once, and needs no warm-up
FEWEST_ROUNDS, MOST_ROUNDS = 3, 200


class WrongAnswerError(RuntimeError):
    """A provider's loss or gradient is not what it should be."""


def check_on_few(provider: Provider, objective: str, n: int, d: int, dtype: torch.dtype, device: str) -> None:
    """Against float64 on at most CHECKED_SAMPLES samples. Raises WrongAnswerError."""
    batch = make_batch(objective, min(n, CHECKED_SAMPLES), d, dtype, device)
    check(provider.prepare(batch)(), provider.expected(batch), dtype)


def check(result: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    """Raises WrongAnswerError with the worst entry of the first tensor (loss, then gradients) that is too far off."""
    if len(result) != len(wanted):
        raise WrongAnswerError(f"gave {len(result)} tensors, not {len(wanted)}")
    for place, (got, want) in enumerate(zip(result, wanted, strict=True)):
        tolerance = TOLERANCE[dtype][want.dim() > 0]
        if want.shape == (2, 2):
            got, want = _fold(got), _fold(want)
        worst = int((got.double() - want.double()).abs().nan_to_num(nan=torch.inf).argmax())
        found, right = got.flatten()[worst].item(), want.flatten()[worst].item()
        error = abs(found - right) / want.abs().max().item()
        if not error <= tolerance:  # so that NaN fails
            raise WrongAnswerError(
                f"tensor {place} is {found:.7g} at {worst}, not {right:.7g}: off by {error:.1e} of the largest entry, "
                f"more than {tolerance:.0e}"
            )


def repeat_interleaved(
    steps: dict[str, Step],
    first: dict[str, float],
    timed: Callable[[Step], tuple[float, list[Tensor]]],
    seconds: float,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each step, run in turn (A B C, C A B, …), so that a slow spell of the machine meets all of them alike.

    ``first`` holds the seconds of each step's first run: the warm-up, or all there is of a long step. ``tick`` is called
    after each run.
    """
    times = {name: [taken] if taken > LONG_STEP else [] for name, taken in first.items()}
    again = [name for name, taken in times.items() if not taken]
    order, start = random.Random(0), time.perf_counter()
    for done in range(1, 1 + MOST_ROUNDS if again else 0):
        for name in order.sample(again, len(again)):
            times[name].append(timed(steps[name])[0])
            tick()
        if done >= FEWEST_ROUNDS and time.perf_counter() - start > seconds:
            break
    return times


def _fold(table: Tensor) -> Tensor:
    """A gradient of a symmetric table, which a provider may give to either triangle, all in the upper one."""
    return table.triu() + table.tril(-1).T
