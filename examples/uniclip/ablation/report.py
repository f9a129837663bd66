"""The page of an ablation: one table and two plots, from what each run measured."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..files import write_atomically
from ..metrics import RECALLS
from .configurations import CONFIGURATIONS, FULL, Configuration

BEGIN, END = "<!-- results -->", "<!-- /results -->"
AWARENESS = {
    "× 0.5": "augmentation × 0.5",
    "× 1": "parts",
    "× 2": "augmentation × 2",
    "× 3": "augmentation × 3",
    "× 1, twice\nas long": "twice as long",
}
MEAN = {"capsize": 5, "markersize": 18}


class Result(NamedTuple):
    """What one run measured, and what guessing would have given on what it held out."""

    configuration: Configuration
    seed: int
    measures: dict[str, float]
    chance: dict[str, float]
    seconds: float


def write(results: list[Result], page: Path, told: str) -> None:
    """The table and the plots in ``page``, between its markers if it is there, the numbers beside it. ``told``: of what run."""
    for path, figure in (
        (_beside(page, "parts.svg"), _plot_of_parts(results)),
        (_beside(page, "training.svg"), _plot_of_training(results)),
    ):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
        write_atomically(path, lambda file, buffer=buffer: file.write(buffer.getvalue()))
    _write_numbers(results, _beside(page, "runs.csv"))
    plots = (("parts", "Recall by configuration"), ("training", "Recall by way of training"))
    shown = "\n".join(f"![{what}]({_beside(page, f'{name}.svg').name})\n" for name, what in plots)
    text = f"{told}\n\n{table(results)}\n{shown}"
    before, _, rest = (page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n").partition(BEGIN)
    content = f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}"
    write_atomically(page, lambda file: file.write(content.encode()))


def has_markers(text: str) -> bool:
    """Whether it says where the results go."""
    return END in text.partition(BEGIN)[2]


def table(results: list[Result]) -> str:
    """Means over seeds in percent, ± the standard deviation; and the difference to UniCLIP with the same seed."""
    columns: dict[str, Callable[[list[Result]], str]] = {
        "text → picture recall@1 / 5 / 10": lambda of: _shares(of, *RECALLS[3:]),
        "median rank": lambda of: _ranks(of, "text_to_image_median_rank"),
        "picture → text recall@1 / 5 / 10": lambda of: _shares(of, *RECALLS[:3]),
        "median rank ": lambda of: _ranks(of, "image_to_text_median_rank"),
        "mean recall": lambda of: _mean([mean_recall(r) for r in of], 100),
        "artist → artist recall@1": lambda of: _shares(of, "across_artists_recall@1"),
        "zero-shot group / subgroup": lambda of: _shares(of, "zero_shot_group", "zero_shot_subgroup"),
        "probe group / subgroup": lambda of: _shares(of, "probe_group", "probe_subgroup"),
        "mean recall − UniCLIP's": lambda of: _difference(of, results),
    }
    lines = [["part", "configuration", *columns], ["---"] * (2 + len(columns))]
    for configuration in CONFIGURATIONS:
        of = [r for r in results if r.configuration == configuration]
        lines.append([configuration.part, configuration.label, *(cell(of) if of else "—" for cell in columns.values())])
    guessed = [r._replace(measures=r.chance) for r in results]
    lines.append(["", "chance", *(cell(guessed) for cell in list(columns.values())[:-1]), "—"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _values(of: Iterable[Result], measure: str) -> list[float]:
    return [r.measures[measure] for r in of if measure in r.measures]


def _shares(of: list[Result], first: str, *more: str) -> str:
    rest = "".join(f" / {100 * statistics.mean(_values(of, measure)):.1f}" for measure in more)
    return f"{_mean(_values(of, first), 100)}{rest}"


def _ranks(of: list[Result], measure: str) -> str:
    return f"{statistics.mean(values):.1f}" if (values := _values(of, measure)) else "—"


def _mean(values: list[float], times: float) -> str:
    spread = f" ± {times * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{times * statistics.mean(values):.1f}{spread}"


def mean_recall(result: Result) -> float:
    """Of @1, @5 and @10 both ways: less a matter of chance than one of them."""
    return statistics.mean(result.measures[name] for name in RECALLS)


def _paired(of: list[Result], others: list[Result]) -> list[float]:
    other = {r.seed: mean_recall(r) for r in others}
    return [mean_recall(r) - other[r.seed] for r in of if r.seed in other]


def _difference(of: list[Result], results: list[Result]) -> str:
    """Mean and its standard error."""
    differences = _paired(of, _of(results, "parts", aware=True))
    if not differences or of[0].configuration == _full():
        return "—"
    error = _error(differences)
    return f"{100 * statistics.mean(differences):+.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")


def _error(values: list[float]) -> float | None:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _full() -> Configuration:
    return next(c for c in CONFIGURATIONS if c.name == FULL and c.objective.aware)


def _of(results: list[Result], part: str, aware: bool) -> list[Result]:
    """MP-NCE with a temperature and an offset a pair, of a part."""
    wanted = [c for c in CONFIGURATIONS if (c.part, c.name, c.objective.aware) == (part, FULL, aware)]
    return [r for r in results if r.configuration in wanted]


def _plot_of_parts(results: list[Result]):
    """Mean recall of each seed, and the mean, by configuration."""
    shown = [c for c in CONFIGURATIONS if c.part in ("parts", "domains")]
    figure, axis = _figure(9, 0.34 * len(shown) + 1)
    axis = axis[0, 0]
    for place, configuration in enumerate(reversed(shown)):
        values = [100 * mean_recall(r) for r in results if r.configuration == configuration]
        color = "C1" if configuration.objective.aware else "C0"
        axis.plot(values, [place] * len(values), "o", color=color, alpha=0.4, markersize=5)
        if values:
            axis.plot([statistics.mean(values)] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2.5)
    axis.set_yticks(range(len(shown)), [c.label for c in reversed(shown)], fontsize=9)
    axis.set_xlabel("mean recall on held-out concepts, % (orange: told the augmentation)")
    return figure


def _plot_of_training(results: list[Result]):
    """What awareness brings by strength of augmentation, and what other ways of training bring."""
    figure, ((awareness, ways),) = _figure(11, 4, 2)
    for place, part in enumerate(AWARENESS.values()):
        pairs = [_of(results, part, aware) for aware in (True, False)]
        differences = [100 * d for d in _paired(*pairs)]
        awareness.plot([place] * len(differences), differences, "o", color="C1", alpha=0.4)
        if differences:
            awareness.errorbar(place, statistics.mean(differences), _error(differences), fmt="_", color="C1", **MEAN)
    awareness.axhline(0, color="black", linewidth=0.8)
    awareness.set_xticks(range(len(AWARENESS)), list(AWARENESS))
    awareness.set_xlabel("strength of augmentation")
    awareness.set_title("mean recall: told the augmentation − not told, points", fontsize=10)

    plain = _of(results, "parts", aware=False)
    others = [
        c for c in CONFIGURATIONS if c.part not in ("parts", "domains") and not c.objective.aware and c.name == FULL
    ]
    for place, configuration in enumerate(reversed(others)):
        differences = [100 * d for d in _paired([r for r in results if r.configuration == configuration], plain)]
        ways.plot(differences, [place] * len(differences), "o", color="C0", alpha=0.4)
        if differences:
            mean, error = statistics.mean(differences), _error(differences)
            ways.errorbar(mean, place, xerr=error, fmt="|", color="C0", **MEAN)
    ways.axvline(0, color="black", linewidth=0.8)
    ways.set_yticks(range(len(others)), [c.part for c in reversed(others)], fontsize=9)
    ways.set_title("mean recall: trained so − trained as usual, both not told, points", fontsize=10)
    return figure


def _figure(width: float, height: float, columns: int = 1):
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write_numbers(results: list[Result], path: Path) -> None:
    buffer = io.StringIO()
    names = list(results[0].measures)
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["part", "configuration", "seed", *names])
    for r in results:
        writer.writerow([r.configuration.part, r.configuration.label, r.seed, *(f"{r.measures[n]:.6g}" for n in names)])
    write_atomically(path, lambda file: file.write(buffer.getvalue().encode()))


def _beside(page: Path, name: str) -> Path:
    return page.with_name(f"{page.stem}-{name}")
