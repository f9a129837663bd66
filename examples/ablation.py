"""Repeats the paper's comparison on emojis: ``python examples/ablation.py --help`` tells all."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import date
from multiprocessing import active_children, get_context
from pathlib import Path

import torch
from tqdm import tqdm
from uniclip import options as training
from uniclip import sources
from uniclip.ablation import report
from uniclip.ablation.configurations import CONFIGURATIONS, IMAGE_SIZE, WIDTH, Configuration
from uniclip.ablation.measures import by_chance, measure
from uniclip.files import write_atomically
from uniclip.samples import Samples, split
from uniclip.trainer import Trainer

INTERRUPTED = 130  # exit status, as the shell has it
QUICK = {"epochs": 1, "batch_size": 32}
QUICK_LIMIT = 64  # emojis

DESCRIPTION = """\
Train every configuration of the ablation with every seed, measure each on held-out concepts (split by base emoji), and
write a page with a table and plots. A run is one thread, so that its numbers do not depend on how many run side by
side. What was measured is kept in --out: an ablation that was stopped goes on when the same command is given again."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    runs = [(c, seed) for seed in range(options.seeds) for c in CONFIGURATIONS]
    try:
        todo = [run for run in runs if load(options, *run) is None]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them done before", flush=True)
    try:
        train_all(todo, options)
    except KeyboardInterrupt:
        print(f"\nstopped; to go on:\n  {shlex.join(sys.orig_argv)}")
        return INTERRUPTED
    results = [report.Result(*run, *load(options, *run)) for run in runs]
    report.write(results, options.page, told(options, sum(result.seconds for result in results)))
    print(f"see {options.page}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--seeds",
        type=training.positive,
        default=3,
        help="of split, weights and all that is random; default: %(default)s",
    )
    add(
        "--quick",
        action="store_true",
        help=f"a trial in a minute or two: {QUICK_LIMIT} emojis, one epoch; its numbers mean nothing",
    )
    add("--workers", type=training.positive, default=os.cpu_count(), help="runs side by side; default: %(default)s")
    add(
        "--out",
        type=training.folder,
        default=Path("runs/ablation"),
        help="folder of what was measured; default: %(default)s",
    )
    add("--page", type=Path, help="Markdown file that the table goes to; default: ablation.md in --out")
    options = parser.parse_args(arguments)
    options.page = options.page or options.out / "ablation.md"
    if options.page.exists() and not report.has_markers(options.page.read_text(encoding="utf-8")):
        parser.error(f"--page {options.page} has no {report.BEGIN} followed by {report.END}")
    return options


def told(options: argparse.Namespace, seconds: float) -> str:
    """What a reader needs to repeat it."""
    command = f"python examples/ablation.py --seeds {options.seeds}{' --quick' if options.quick else ''}"
    machine = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
    return f"`{command}`: {seconds / 3600:.2f} hours of one core, {machine}, torch {torch.__version__}, {date.today()}"


def train_all(runs: list[tuple[Configuration, int]], options: argparse.Namespace) -> None:
    """In worker processes; a bar shows how much of the training is done and how long the rest takes."""
    limit = QUICK_LIMIT if options.quick else None
    pool = ProcessPoolExecutor(min(options.workers, len(runs) or 1), get_context("spawn"), start_worker, (limit,))
    bar = tqdm(
        total=sum(configuration.epochs for configuration, _ in runs), unit=" epochs", smoothing=0.05, disable=None
    )
    with pool, bar:
        waiting = {pool.submit(run, c, seed, options.quick): (c, seed) for c, seed in runs}
        try:
            for future in as_completed(waiting):
                configuration, seed = waiting[future]
                save(options, configuration, seed, future.result())
                seconds = future.result()["seconds"]
                bar.write(f"{configuration.part}: {configuration.label}, seed {seed}: {seconds:.0f} s")
                bar.update(configuration.epochs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise


_samples: Samples


def start_worker(limit: int | None) -> None:
    global _samples
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent that stops
    torch.set_num_threads(1)
    _samples = sources.load(None, limit)


def run(configuration: Configuration, seed: int, quick: bool = False) -> dict:
    """Train one configuration, and measure it. The same numbers each time."""
    began = time.monotonic()
    if quick:
        configuration = replace(configuration, **QUICK)
    how = f"--epochs {configuration.epochs} --batch-size {configuration.batch_size} --image-size {IMAGE_SIZE} --width {WIDTH}"
    options = training.parse(f"{how} --augmentation {configuration.augmentation} --seed {seed} --device cpu".split())
    train, test = split(_samples, seed)
    trainer = Trainer(train, configuration.objective, options)
    while trainer.step < trainer.steps:
        trainer.train_step()
    measures = measure(trainer.average.module, train, test)
    return {"measures": measures, "chance": by_chance(train, test), "seconds": time.monotonic() - began}


def path_of(options: argparse.Namespace, configuration: Configuration, seed: int) -> Path:
    name = re.sub(r"\W+", "-", f"{configuration.part} {configuration.label}").strip("-")
    return options.out / f"{name}-{seed}.json"


def save(options: argparse.Namespace, configuration: Configuration, seed: int, result: dict) -> None:
    kept = {"settings": settings(options, configuration, seed), **result}
    write_atomically(
        path_of(options, configuration, seed), lambda file: file.write(json.dumps(kept, indent=1).encode())
    )


def load(options: argparse.Namespace, configuration: Configuration, seed: int) -> tuple[dict, dict, float] | None:
    """The measures of a run, what chance gives, and its seconds, if it was done before."""
    path = path_of(options, configuration, seed)
    if not path.exists():
        return None
    kept = json.loads(path.read_bytes())
    if kept["settings"] != settings(options, configuration, seed):
        raise ValueError(f"{path} is of another ablation; remove it, or give another --out")
    return kept["measures"], kept["chance"], kept["seconds"]


def settings(options: argparse.Namespace, configuration: Configuration, seed: int) -> dict:
    """As JSON gives them back."""
    how = {"image_size": IMAGE_SIZE, "width": WIDTH, "seed": seed, "quick": options.quick}
    return json.loads(json.dumps({**configuration.settings, **how}))


if __name__ == "__main__":
    sys.exit(main())
