"""What each epoch measured: metrics.jsonl, TensorBoard, and a line on the screen."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from pathlib import Path

import torch

from .retrieval import RANKS

RECALLS = tuple(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in RANKS)


class Stopwatch:
    """Seconds between laps; on a GPU each lap first waits for the work that was queued."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.lap()

    def lap(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        seconds, self.last = now - getattr(self, "last", now), now
        return seconds


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the device on a GPU, of the whole process (resident) on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Metrics:
    """The rows of metrics.jsonl, one an epoch, mirrored to TensorBoard.

    On resume the file is written anew from the rows in the checkpoint, so that nothing from after it stays behind.
    """

    def __init__(self, out: Path, rows: list[dict]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.rows = rows
        out.mkdir(parents=True, exist_ok=True)
        if not rows:  # a run that begins anew leaves nothing of the one before
            shutil.rmtree(out / "tensorboard", ignore_errors=True)
        self.file = (out / "metrics.jsonl").open("w", encoding="utf-8")
        self.file.writelines(json.dumps(row) + "\n" for row in rows)
        self.file.flush()
        purge = rows[-1]["step"] + 1 if rows else 0
        self.board = SummaryWriter(out / "tensorboard", purge_step=purge)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in row.items():
            if isinstance(value, list):
                for i, line in enumerate(value):
                    for j in range(i, len(line)):
                        self.board.add_scalar(f"{name}/{i}-{j}", line[j], row["step"])
            elif value is not None and name != "step":
                self.board.add_scalar(name.replace("_recall", "/recall"), value, row["step"])
        self.board.flush()

    def line(self) -> str:
        """The last row for the screen."""
        row = self.rows[-1]
        text = f"epoch {row['epoch']}: loss {row['loss']:.3f}"
        if row[RECALLS[0]] is not None:
            for way in ("text_to_image", "image_to_text"):
                shares = " / ".join(f"{100 * row[f'{way}_recall@{k}']:.1f}" for k in RANKS)
                text += f", {way.replace('_to_', '→')} recall@1/5/10 {shares} %"
        return text

    def close(self) -> None:
        self.file.close()
        self.board.close()
