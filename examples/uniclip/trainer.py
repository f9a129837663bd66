"""One training step, and everything that has to be kept to take the next one later."""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from uniclip_kernels import stack_views

from . import augment
from .metrics import Stopwatch
from .model import UniCLIP
from .objective import OBJECTIVES
from .samples import Samples
from .text import TextTable

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # share of all steps
AVERAGING = 0.97  # share of the running mean of the weights that a step keeps


class Trainer:
    """Model, loss, optimizer and schedule over one set of training samples.

    All randomness of a step follows from the seed and the number of the step, and the order of the samples from the
    seed and the epoch. So a checkpoint needs no generator states to go on exactly as if it had never stopped.
    """

    def __init__(self, samples: Samples, options: argparse.Namespace) -> None:
        self.samples, self.device, self.seed = samples, options.device, options.seed
        self.objective = OBJECTIVES[options.objective]
        self.batch_size = min(options.batch_size, len(samples))
        self.steps_an_epoch = len(samples) // self.batch_size
        self.captions = torch.tensor([len(captions) for captions in samples.captions])
        every = zip(samples.captions, samples.extra_texts, strict=True)
        self.texts = TextTable([captions + extra for captions, extra in every])

        torch.manual_seed(options.seed)
        self.model = UniCLIP(self.objective).to(self.device, memory_format=torch.channels_last)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(AVERAGING), use_buffers=True)
        self.loss = self.objective.loss(options.backend).to(self.device)
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

        The embeddings are cut off the graph between encoders and loss, so that the two can be timed apart: encoders
        (augmentation, forward and backward), loss (forward and backward), optimizer (and average of the weights).
        """
        watch = Stopwatch(self.device)
        views, augmentations, texts = self._batch()
        rows = self.model(views, augmentations, texts)
        leaves = [row.detach().requires_grad_() for row in rows]
        encoders = watch.lap()

        loss = self.loss(*stack_views(leaves, self.objective.row_domains))
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} in step {self.step + 1}")
        self.sums["seconds_loss"] += watch.lap()

        torch.autograd.backward(rows, [leaf.grad for leaf in leaves])
        self.sums["seconds_encoders"] += encoders + watch.lap()

        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.sums["seconds_optimizer"] += watch.lap()

        self.step += 1
        self.sums["loss"] += value
        return value

    def _batch(self) -> tuple[list[Tensor], list[Tensor], tuple[Tensor, Tensor]]:
        epoch, position = divmod(self.step, self.steps_an_epoch)
        torch.manual_seed(_derived_seed(self.seed, 0, epoch))
        order = torch.randperm(len(self.samples))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]

        torch.manual_seed(_derived_seed(self.seed, 1, self.step))
        images = self.samples.images[chosen].to(self.device)
        augmentations = [augment.draw(len(images), self.device) for _ in range(self.objective.image_views)]
        views = [augment.apply(images, what, self.model.image_size) for what in augmentations]
        # The first text of a sample is one of its captions, any further ones may be extra texts too.
        pools = [self.captions] + [None] * (self.objective.text_rows - 1)
        rows = torch.cat([self.texts.draw(chosen, pool) for pool in pools])
        return views, augmentations, self.texts.bags(rows, self.device)

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
