"""Train UniCLIP on pictures and texts: ``python examples/train.py --help`` tells all. torchrun runs it on several ranks.

Beside this file, in uniclip/: `sources`, `samples` and `emojis` (data), `text` and `augment` (what the encoders
see), `model`, `objective` and `trainer` (one step), `distributed` (ranks), `retrieval` (evaluation), `metrics` and
`plots` (what is written).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm
from uniclip import checkpoint, distributed, emojis, files, plots, sources
from uniclip.metrics import RECALLS, Metrics, peak_memory_bytes
from uniclip.objective import DOMAINS, OBJECTIVES
from uniclip.options import parse, settings
from uniclip.retrieval import RANKS, HeldOut, chance, recalls, similarities
from uniclip.samples import split
from uniclip.trainer import Trainer

EVALUATE_EVERY = 4  # epochs; after the last one too
RESULTS = ("checkpoint.pt", "metrics.jsonl", "tensorboard", "curves.png", "retrieval.png")  # in --out
INTERRUPTED = 130  # exit status, as the shell has it


def main() -> int:
    with distributed.joined():
        options = parse()
        try:
            return run(options)
        except (sources.DataError, checkpoint.CheckpointError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nquit at once; steps since the last checkpoint are lost", file=sys.stderr)
            return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    saved = options.out / "checkpoint.pt"
    state = checkpoint.load(saved, settings(options)) if options.resume else None

    with distributed.one_first():  # it renders and keeps the drawings
        samples = sources.load(options.data, options.limit)
    train, test = split(samples, options.seed, options.split)
    held_out = HeldOut.of(test)
    fingerprint = samples.fingerprint()
    if state and state["data"] != fingerprint:
        raise checkpoint.CheckpointError(f"--resume: the pictures or texts are not those that {saved} was made with")
    out = f"{len(test)} held out ({options.split} split) with {len(held_out.captions)} captions"
    print(f"{len(train)} samples to train on, {out}")
    by_chance = " / ".join(f"{100 * chance(held_out.right, k):.1f}" for k in RANKS)
    print(f"chance: text→image recall@1/5/10 {by_chance} %")

    objective = dataclasses.replace(OBJECTIVES[options.objective], sources=DOMAINS[options.domains])
    trainer = Trainer(train, objective, options)
    if state:
        trainer.load_state_dict(state["trainer"])
    if distributed.rank() > 0:
        return follow(trainer)
    if saved.exists() and not state:
        earlier = options.out / "earlier"
        files.set_aside(options.out, RESULTS, earlier)
        print(f"the run that was in {options.out} is now in {earlier}")
    metrics = Metrics(options.out, state["metrics"] if state else [])

    def save() -> None:
        parts = {"data": fingerprint, "trainer": trainer.state_dict(), "metrics": metrics.rows}
        checkpoint.save(saved, settings(options), parts)

    with interrupts() as interrupted, progress(trainer) as bar:
        while trainer.step < trainer.steps:
            if interrupted():
                save()
                bar.close()
                print(f"stopped after step {trainer.step} of {trainer.steps}; to go on:\n  {resume_command()}")
                return INTERRUPTED
            loss = trainer.train_step()
            bar.set_postfix(epoch=trainer.epoch, loss=f"{loss:.3f}", refresh=False)
            bar.update(trainer.batch_size)
            if trainer.step % trainer.steps_an_epoch == 0:
                metrics.add(epoch_row(trainer, held_out, options))
                trainer.clear_sums()
                save()
                bar.write(metrics.line())
    metrics.close()

    plots.curves(metrics.rows, trainer.objective, options.out / "curves.png")
    credit = emojis.CREDIT if options.data is None else ""
    plots.retrieval(held_out, similarities(trainer.average.module, held_out), options.out / "retrieval.png", credit)
    print(f"see {options.out}/metrics.jsonl, curves.png and retrieval.png")
    return 0


def follow(trainer: Trainer) -> int:
    """The run of all ranks but the first, which does the rest alone."""
    with interrupts() as interrupted:
        while trainer.step < trainer.steps:
            if interrupted():
                return INTERRUPTED
            trainer.train_step()
    return 0


def epoch_row(trainer: Trainer, held_out: HeldOut, options: argparse.Namespace) -> dict:
    """The line of metrics.jsonl for the epoch that has just ended; evaluation is of the averaged weights."""
    measured = dict.fromkeys(RECALLS)
    if trainer.epoch % EVALUATE_EVERY == 0 or trainer.epoch == options.epochs:
        measured = recalls(similarities(trainer.average.module, held_out), held_out.right)
    sums = trainer.sums
    return {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "loss": sums["loss"] / trainer.steps_an_epoch,
        **measured,
        "temperature": trainer.loss.temperature.tolist(),
        "offset": trainer.loss.offsets.tolist(),
        **{name: sums[name] for name in ("seconds_encoders", "seconds_loss", "seconds_optimizer")},
        "peak_memory_bytes": peak_memory_bytes(options.device),
    }


def progress(trainer: Trainer) -> tqdm:
    samples = trainer.batch_size
    return tqdm(total=trainer.steps * samples, initial=trainer.step * samples, unit=" samples", unit_scale=True)


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Tells whether Ctrl-C was pressed, on any rank; it ends nothing by itself the first time, everything the second time."""
    pressed = False

    def note(*_) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: distributed.any_rank(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


def resume_command() -> str:
    command = sys.orig_argv
    if distributed.size() > 1:
        command = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"], *sys.argv]
    return shlex.join(command if "--resume" in sys.argv else [*command, "--resume"])


if __name__ == "__main__":
    sys.exit(main())
