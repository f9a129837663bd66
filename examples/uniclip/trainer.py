"""One training step, and everything that has to be kept to take the next one later."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uniclip_kernels import cached_backward

from . import augment, distributed
from .emojis import LANGUAGES
from .metrics import Stopwatch
from .model import UniCLIP
from .objective import TEXTS, VIEWS, Objective
from .samples import DataError, Samples, Text
from .text import Bags, TextTable

Inputs = Callable[[Tensor], tuple[list[Tensor], list[Tensor], Bags]]
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # share of all steps
AVERAGING = 0.97  # share of the running mean of the weights that a step keeps


class Trainer:
    """Model, loss, optimizer and schedule over one set of training samples.

    All randomness of a step follows from the seed and the number of the step, and the order of the samples from the
    seed and the epoch. So a checkpoint needs no generator states to go on exactly as if it had never stopped. How many
    ranks share a batch, and in which chunks each encodes its share, changes rounding alone.
    """

    def __init__(self, samples: Samples, objective: Objective, options: argparse.Namespace) -> None:
        self.samples, self.device, self.seed, self.objective = samples, options.device, options.seed, objective
        self.cache_chunk, self.augmentation = options.cache_chunk, options.augmentation
        if (pictures := 1 + max(objective.sources.pictures)) > samples.images.shape[1]:
            raise DataError(
                f"--domains: needs {pictures} pictures of each sample, the data has {samples.images.shape[1]}"
            )
        self.batch_size = min(options.batch_size, len(samples))
        if self.batch_size < (ranks := distributed.size()):
            raise DataError(f"--batch-size: a batch of {self.batch_size} cannot be shared by {ranks} ranks")
        self.steps_an_epoch = len(samples) // self.batch_size
        self.captions = torch.tensor([len(captions) for captions in samples.captions])
        every = zip(samples.captions, samples.extra_texts, strict=True)
        texts = [[*map(Text, captions), *extra] for captions, extra in every]
        self.texts = TextTable([[text.text for text in of_sample] for of_sample in texts])
        number = {"": 0} | {language: 1 + i for i, language in enumerate(LANGUAGES)}
        self.languages = torch.tensor([number[text.language] for of_sample in texts for text in of_sample])

        torch.manual_seed(options.seed)
        self.model = UniCLIP(objective, options.image_size, options.width).to(
            self.device, memory_format=torch.channels_last
        )
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING))
        self.towers = distributed.towers(self.model)
        self.loss = objective.criterion(options.backend, distributed.group()).to(self.device)
        self.optimizer = _adamw(self.model, self.loss)
        self.steps = self.steps_an_epoch * options.epochs
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: warm_up_cosine(step, self.steps))
        self.step = 0
        self.clear_sums()

    @property
    def epoch(self) -> int:
        """The epoch of the last step, from 1; 0 before the first."""
        return -(-self.step // self.steps_an_epoch)

    def clear_sums(self) -> None:
        """Begin an epoch."""
        self.sums = {"loss": 0.0, "seconds_encoders": 0.0, "seconds_loss": 0.0, "seconds_optimizer": 0.0}

    def train_step(self) -> float:
        """Take one step; returns its loss, and adds that and the seconds of its three parts to ``sums``.

        They are encoders (augmentation, forward and backward), loss (forward and backward), optimizer (and average of
        the weights).
        """
        watch = Stopwatch(self.device)

        def spent(part: str) -> None:
            self.sums[f"seconds_{part}"] += watch.lap()

        (inputs, ids), share = self._batch(), distributed.share(self.batch_size)

        def encode(positions: Tensor) -> list[Tensor]:
            return self.towers(*inputs(positions))

        def loss_of(*rows: Tensor) -> Tensor:
            spent("encoders")
            rows[-1].register_hook(lambda _: spent("loss"))  # gradients come back to the last rows first
            return self.loss(torch.cat(rows), **ids(share))

        if self.cache_chunk is None:
            loss = loss_of(*encode(share))
            loss.backward()
        else:
            waiting = [self.towers] if distributed.size() > 1 else []
            loss = cached_backward(encode, share.split(self.cache_chunk), loss_of, no_sync=waiting)
        value = loss.item()
        spent("encoders")
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} in step {self.step + 1}")

        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.average.update_parameters(self.model)
        spent("optimizer")

        self.step += 1
        self.sums["loss"] += value
        return value

    def _batch(self) -> tuple[Inputs, Callable[[Tensor], dict[str, Tensor | None]]]:
        """Gives what the model takes of the samples at some positions in the batch, and what the loss takes beside its rows.

        What is random is drawn here, for the whole batch, whichever of them this rank will ask for.
        """
        epoch, position = divmod(self.step, self.steps_an_epoch)
        torch.manual_seed(_derived_seed(self.seed, 0, epoch))
        order = torch.randperm(len(self.samples))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        objective, count = self.objective, len(chosen)

        torch.manual_seed(_derived_seed(self.seed, 1, self.step))
        drawn = [augment.draw(count, self.augmentation) for _ in range(VIEWS)]
        # The first text of a sample is one of its captions, any further ones may be extra texts too.
        rows = torch.stack([self.texts.draw(chosen, pool) for pool in [self.captions] + [None] * (TEXTS - 1)])
        texts = self.texts.bags.take(rows.flatten()).with_some_hidden()
        places = torch.arange(rows.numel()).view_as(rows)
        domains, pairings = objective.domain_ids(self.languages[rows]), objective.pairings(count)

        def inputs(positions: Tensor) -> tuple[list[Tensor], list[Tensor], Bags]:
            pictures = self.samples.images[chosen[positions]].to(self.device)
            augmentations = [what[positions].to(self.device) for what in drawn]
            views = [
                augment.apply(pictures[:, picture], what, self.model.image_size)
                for picture, what in zip(objective.sources.pictures, augmentations, strict=True)
            ]
            return views, augmentations, texts.take(places[:, positions].flatten()).to(self.device)

        def ids(positions: Tensor) -> dict[str, Tensor | None]:
            samples = positions.repeat(objective.rows)
            alone = {"sample_ids": samples, "exclude_ids": None}
            if pairings is not None:  # rows of one sample that are no pair are no negatives either
                alone = {"sample_ids": 2 * samples + pairings[:, positions].flatten(), "exclude_ids": samples}
            alone["domain_ids"] = domains[:, positions].flatten()
            weight = objective.anchor_weight(len(positions), self.device)
            return {n: None if i is None else i.to(self.device) for n, i in alone.items()} | {"anchor_weight": weight}

        return inputs, ids

    def state_dict(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in self._PARTS}
        return {**parts, "step": self.step, "sums": self.sums}

    def load_state_dict(self, state: dict) -> None:
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.sums = state["step"], state["sums"]

    _PARTS = ("model", "average", "loss", "optimizer", "schedule")


def _derived_seed(*parts: int) -> int:
    """A seed of its own for each tuple of numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def warm_up_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up in a line over the first tenth of all steps, then down along a cosine to 0."""
    warm = math.ceil(WARM_UP * steps)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) if steps > warm else 1.0


def _adamw(model: nn.Module, loss: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, but neither biases and norms nor temperatures and offsets."""
    parameters = [*model.parameters(), *loss.parameters()]
    decayed, others = ([p for p in parameters if (p.ndim > 1) == matrices] for matrices in (True, False))
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
