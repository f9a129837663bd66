"""The command line."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import torch

from uniclip_kernels import backends

from .distributed import local_rank
from .objective import DOMAINS, OBJECTIVES
from .samples import SPLITS

DESCRIPTION = """\
Train UniCLIP from scratch on pictures and texts.

Without --data it trains on drawings of emojis and their Unicode names, which pip has installed. A tenth of
the samples, drawn by the seed, is held out; how often a held-out text finds its picture and a picture its text
(recall@1, @5, @10) is measured every few epochs and at the end."""

EPILOG = """\
data:
  (none)                    emojis, as OpenMoji (CC BY-SA 4.0) and Twemoji (CC BY 4.0) draw them. Drawings are rendered
                            once and kept in ~/.cache/uniclip-kernels (or below $XDG_CACHE_HOME).
  DIR                       a folder with captions.csv, UTF-8, whose header names the columns image and caption; image
                            is a path from the folder. An image may have many lines, each with one caption.
  'path/shard-{000..009}.tar'
                            WebDataset shards (quote the braces): an image (jpg, jpeg, png, webp) and a txt of the
                            same name with one caption a line.
  Pictures are cut to their central square, scaled to 64 by 64 pixels and held in memory, 12 KiB each.
  Pictures with the very same pixels are one sample with several captions.

objectives, each of two augmented views and two texts a sample:
  uniclip       all are compared with all, each positive with the negatives alone (MP-NCE), with a temperature and an
                offset for each pair of domains, and an image head that is told the augmentation
  mp-nce        the same without being told, which docs/ablation.md found better in longer training
  supcon        as uniclip with SupCon, whose positives compete with each other
  mil-nce       as uniclip with MIL-NCE, whose positives are one
  infonce       as uniclip with one of the positives, drawn for each step
  clip          pictures with texts only, one view with one text
  simclr+clip   clip, beside a second image head in which the two views of a sample meet

domains, with a temperature and an offset for each pair of them:
  picture       image and text: two views of one picture
  pictures      image and text: one view of each of two pictures of a sample, which only emojis have
  artists       OpenMoji, Twemoji, text
  languages     OpenMoji, Twemoji, and each language that emojis have names in

splits:
  base          all variants of an emoji (skin tones, genders) are trained on, or all are held out
  random        variants of what is held out may be trained on; own data, which has none, is split so by both

ranks:
  torchrun --nproc-per-node 2 examples/train.py --cache-chunk 64
  shares out each batch to two processes, each with its own GPU if there are any. The numbers differ from those of one
  process by rounding alone, and --resume takes any number of ranks. All must see --data and --out; the first alone
  prints, evaluates and writes.

written to --out:
  metrics.jsonl     one JSON object an epoch
  checkpoint.pt     after each epoch and on Ctrl-C, never half written
  tensorboard/      the same numbers: tensorboard --logdir OUT
  curves.png        loss, recall, temperatures and offsets over time
  retrieval.png     held-out texts with their five nearest held-out pictures

Ctrl-C ends the step in hand, saves, and prints the command that goes on; what follows is the same, bit for bit, as if
it had not been stopped (same machine, same number of threads, ranks and --cache-chunk). A second Ctrl-C quits at
once."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    usable = [name for name, reason in backends().items() if reason is None]
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        metavar="DIR|SHARDS",
        help="pictures and captions of your own (see below); default: emojis",
    )
    add("--split", choices=SPLITS, default="base", help="what is held out (see below); default: base")
    add(
        "--objective",
        choices=OBJECTIVES,
        default="mp-nce",
        help="what to train with (see below); default: mp-nce",
    )
    add("--domains", choices=DOMAINS, help="what rows are of (see below); default: artists, of --data picture")
    add(
        "--augmentation",
        type=_strength,
        default=1.0,
        metavar="STRENGTH",
        help="how far views are from their picture: 0 not at all, 2 twice as far as usual; default: 1",
    )
    add(
        "--backend",
        choices=backends(),
        help=f"of the loss; usable here: {', '.join(usable)}; default: the best",
    )
    add("--image-size", type=int, choices=(16, 32, 48, 64), default=48, help="side of the views in pixels; default: 48")
    add(
        "--width",
        type=int,
        choices=(16, 32, 64, 128),
        default=64,
        help="first channels of the image encoder; default: 64",
    )
    add("--epochs", type=positive, default=36, help="passes over the training samples; default: %(default)s")
    add("--batch-size", type=_batch_size, default=128, help="samples a step, over all ranks; default: %(default)s")
    add(
        "--cache-chunk",
        type=positive,
        metavar="N",
        help="encode N samples of a rank at a time, and each of them twice, so that a batch may be larger than the memory "
        "that its encoding takes",
    )
    add("--limit", type=positive, metavar="N", help="read the first N rows of the data only")
    add(
        "--seed",
        type=_seed,
        default=0,
        help="of the held-out tenth, weights, order and augmentation; default: 0",
    )
    add(
        "--out",
        type=folder,
        default=Path("runs/train"),
        help="folder for results, made if needed; default: %(default)s",
    )
    add(
        "--device",
        type=_device,
        default=_default_device(),
        help="cpu, cuda (each rank its own), cuda:1 …; default here: %(default)s",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the checkpoint in --out (give the other options as before); without it a run begins anew, "
        "and what was in --out goes to OUT/earlier",
    )
    options = parser.parse_args(arguments)
    if options.backend and (reason := backends()[options.backend]):
        parser.error(f"--backend {options.backend} is not usable here: {reason}")
    options.domains = options.domains or ("picture" if options.data else "artists")
    return options


def settings(options: argparse.Namespace) -> dict:
    """What has to be the same for a checkpoint to be resumed: all that decides the numbers."""
    names = ("data", "limit", "split", "seed", "objective", "domains", "augmentation")
    names += ("image_size", "width", "epochs", "batch_size")
    return {name: getattr(options, name) for name in names}


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _batch_size(text: str) -> int:
    if (value := int(text)) < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, for there are no negatives otherwise, got {value}")
    return value


def _strength(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text}")
    return value


def _seed(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def folder(text: str) -> Path:
    path = Path(text)
    there = next(p for p in (path, *path.absolute().parents) if p.exists())  # the rest will be made
    if not text or not there.is_dir():
        raise argparse.ArgumentTypeError(f"{str(there) if text else text!r} is not a folder")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{there} cannot be written to")
    return path


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        if device == torch.device("cuda"):
            device = torch.device("cuda", local_rank())
            torch.cuda.set_device(device)
        torch.zeros((), device=device).item()  # what has no values, such as meta, fails here
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text} is not usable here: {str(error).splitlines()[0]}") from None
    return device


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
