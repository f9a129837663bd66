"""The two pictures at the end: curves over time, and held-out texts with their nearest pictures."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import torch
from torch import Tensor

from .files import write_atomically
from .metrics import RECALLS
from .objective import Objective
from .retrieval import HeldOut

GRID = {"alpha": 0.3}
DOTS = {"marker": ".", "markersize": 4}  # without them a single epoch would show nothing
CURVE_MARGINS = {"left": 0.06, "right": 0.98, "bottom": 0.07, "top": 0.95, "wspace": 0.16, "hspace": 0.28}
SHEET_MARGINS = {"left": 0.02, "right": 0.99, "bottom": 0.03, "top": 0.93, "wspace": 0.1, "hspace": 0.45}
QUERIES = (8, 2)  # rows and columns of the retrieval sheet
NEAREST = 5
FEW = 12  # lines that a legend can tell apart
RIGHT, WRONG, INK = "#1a9850", "#cccccc", "#222222"


def curves(rows: list[dict], objective: Objective, path: Path) -> None:
    """Loss, recall, temperatures and offsets over the epochs."""
    figure, axes = _figure(11, 8, 2, 2, gridspec_kw=CURVE_MARGINS)
    epochs = [row["epoch"] for row in rows]
    loss, recall, temperature, offset = axes.flat

    loss.plot(epochs, [row["loss"] for row in rows], color=INK, **DOTS)
    loss.set_title("training loss")

    evaluated = [row for row in rows if row[RECALLS[0]] is not None]
    for name in RECALLS:
        way, rank = name.split("_recall@")
        recall.plot(
            [row["epoch"] for row in evaluated],
            [100 * row[name] for row in evaluated],
            color="C0" if way == "text_to_image" else "C1",
            linestyle={"1": "-", "5": "--", "10": ":"}[rank],
            label=f"{way.replace('_to_', ' → ')} @{rank}",
            **DOTS,
        )
    recall.set_title("held-out recall, %")
    recall.set_ylim(0, 100)
    recall.legend(fontsize=8, ncols=2)

    for axis, key, title in ((temperature, "temperature", "temperature τ"), (offset, "offset", "offset b")):
        for first, second in objective.pairs:
            label = f"{objective.domains[first]} – {objective.domains[second]}"
            axis.plot(epochs, [row[key][first][second] for row in rows], label=label, **DOTS)
        axis.set_title(title)
        if len(objective.pairs) <= FEW:
            axis.legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(**GRID)
        axis.set_xlabel("epoch")
        axis.set_xlim(0, max(epochs[-1], 2))
        axis.locator_params("x", integer=True)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def retrieval(held_out: HeldOut, similarity: Tensor, path: Path, credit: str = "") -> None:
    """Held-out texts, evenly spaced in the list of all, each with its five nearest held-out pictures.

    similarity  (T, N) as from `retrieval.similarities`
    credit      whose pictures they are
    """
    rows, columns = QUERIES
    texts = len(held_out.captions)
    count, nearest = min(rows * columns, texts), min(NEAREST, similarity.shape[1])
    gap = 0.4  # an empty column between the two halves, in widths of a picture
    ratios = ([1] * NEAREST + [gap]) * columns
    figure, axes = _figure(12, 13, rows, len(ratios), width_ratios=ratios, gridspec_kw=SHEET_MARGINS)
    for axis in axes.flat:
        axis.axis("off")
    for place, text in enumerate(torch.linspace(0, texts - 1, count).long().tolist()):
        values, pictures = similarity[text].topk(nearest)
        line = axes[place % rows, place // rows * (NEAREST + 1) :][:nearest]
        caption = textwrap.shorten(held_out.captions[text], 64, placeholder=" …")
        line[0].set_title(caption, loc="left", fontsize=10, color=INK, parse_math=False)
        for axis, value, picture in zip(line, values.tolist(), pictures.tolist(), strict=True):
            right = bool(held_out.right[text, picture])
            axis.axis("on")
            axis.imshow(held_out.samples.images[picture, 0].permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(f"{'✓ ' if right else ''}{value:.2f}", fontsize=8, color=RIGHT if right else INK)
            for spine in axis.spines.values():
                spine.set(color=RIGHT if right else WRONG, linewidth=3 if right else 0.8)
    figure.suptitle("held-out texts and their five nearest held-out pictures (number: cosine; green: right)", y=0.975)
    figure.text(0.99, 0.005, credit, ha="right", fontsize=8, color=INK)
    _save(figure, path)


def _figure(width: float, height: float, rows: int, columns: int, **options):
    from matplotlib.figure import Figure  # slow to import; without pyplot there is no display to ask for

    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _save(figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
