"""Other packages, called as their documentation says, with the settings that suit them best."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..definitions import SIGLIP_BIAS
from ..problems import Batch, loss_and_gradients
from .provider import Step
from .pytorch import compile_loss, ready

CACHED_CHUNK = 512  # rows of similarities at a time, as of linear_cross_entropy


def open_clip(batch: Batch) -> Step:
    return image_and_text(batch, open_clip_losses().ClipLoss())


def open_clip_compiled(batch: Batch) -> Step:
    return ready(image_and_text(batch, compile_loss(open_clip_losses().ClipLoss())))


def open_clip_sigmoid(batch: Batch) -> Step:
    loss, bias = open_clip_losses().SigLipLoss(), torch.full_like(batch.tau, SIGLIP_BIAS)
    return image_and_text(batch, lambda image, text, scale: loss(image, text, scale, bias))


@functools.cache  # a class loaded again would be compiled again
def open_clip_losses() -> ModuleType:
    """From their file alone, which needs PyTorch: the package imports models and tokenizers that need much more."""
    file = Path(importlib.util.find_spec("open_clip").origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image_and_text(batch: Batch, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
    """``loss`` takes image and text rows, and what similarities are multiplied by."""
    return lambda: loss_and_gradients(loss(*batch.embeddings.chunk(2), 1 / batch.tau), batch)


def inf_cl(batch: Batch) -> Step:
    from inf_cl import cal_flash_loss

    head = math.gcd(256, batch.embeddings.shape[1])  # columns that it multiplies at a time

    def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        to_text, to_image = (cal_flash_loss(*pair, None, scale, head) for pair in ((image, text), (text, image)))
        return (to_text.mean() + to_image.mean()) / 2

    return image_and_text(batch, loss)


def memeff(batch: Batch) -> Step:
    from memeff import MemoryEfficientCLIPLoss

    # Not `stable`, which scales gradients by sqrt(N / temperature); its temperature is a constant on the host.
    loss = MemoryEfficientCLIPLoss(batch.tau.item(), normalized_inputs=True, stable=False)
    return image_and_text(batch, lambda image, text, scale: loss(image, text))


def siglip(batch: Batch) -> Step:
    from siglip_kernel import fused_siglip_loss

    bias = torch.full_like(batch.tau, SIGLIP_BIAS)
    return image_and_text(batch, lambda image, text, scale: fused_siglip_loss(image, text, scale.log(), bias))


def metric_learning_nt_xent(batch: Batch) -> Step:
    from pytorch_metric_learning.losses import NTXentLoss

    return lambda: loss_and_gradients(NTXentLoss(batch.tau)(batch.embeddings, batch.sample_ids), batch)


def metric_learning_sup_con(batch: Batch) -> Step:
    from pytorch_metric_learning.losses import SupConLoss

    return lambda: loss_and_gradients(SupConLoss(batch.tau)(batch.embeddings, batch.sample_ids), batch)


def lightly_nt_xent(batch: Batch) -> Step:
    from lightly.loss import NTXentLoss

    return lambda: loss_and_gradients(NTXentLoss(batch.tau)(*batch.embeddings.chunk(2)), batch)


def sentence_transformers(batch: Batch) -> Step:
    """The part that follows the model, as it is run in training: backward at once for each chunk of similarities."""
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    model = torch.nn.Sequential(torch.nn.Identity())
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}

    def step():
        rows = [view.detach().requires_grad_() for view in batch.embeddings.chunk(2)]
        scale = 1 / batch.tau
        scale_leaf = scale.detach().requires_grad_(scale.requires_grad)
        loss = CachedMultipleNegativesRankingLoss(model, scale_leaf, dot_score, CACHED_CHUNK, **both)
        total = loss.calculate_loss([[view] for view in rows], with_backward=True)
        grads = [torch.cat([view.grad for view in rows])]
        if scale.requires_grad:
            grads += torch.autograd.grad(scale, batch.temperature, scale_leaf.grad)
        return [total, *grads]

    return step
