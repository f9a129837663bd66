"""open_clip's ``ClipLoss`` and ``SigLipLoss``: the same arguments, exact across ranks, in memory linear in the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..functional import mp_nce, siglip, stack_views

_ACROSS = torch.tensor([[False, True], [True, False]])  # images are compared with texts alone
_COMMUNICATIONS = {None: "gather", "gather": "gather", "reduce": "gather", "shift": "ring", "bidir": "ring"}


class _Loss(nn.Module):
    def __init__(self, objective: Callable[..., Tensor], world_size: int, communication: str) -> None:
        super().__init__()
        self.objective, self.world_size, self.communication = objective, world_size, communication

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
        *,
        more_image_features: Sequence[Tensor] = (),
        more_text_features: Sequence[Tensor] = (),
    ) -> Tensor | dict[str, Tensor]:
        """The loss of (N, D) normalised features, float32 (float64 for float64); with ``output_dict`` as "contrastive_loss".

        Args:
            logit_scale: what cosines are multiplied by, itself and not its logarithm: a number or a tensor of one element.
            logit_bias: added to the logits, likewise; None is 0.
            more_image_features, more_text_features: further views and texts of the same samples, (N, D) each: positives too,
                each against the texts, or images, of other samples. The mean is over all of them.
        """
        images, texts = [image_features, *more_image_features], [text_features, *more_text_features]
        embeddings, sample_ids, domain_ids = stack_views(images + texts, [0] * len(images) + [1] * len(texts))
        group = None
        if self.world_size > 1:
            if not dist.is_initialized() or dist.get_world_size() != self.world_size:
                found = f"{dist.get_world_size()} ranks" if dist.is_initialized() else "no process group"
                raise ValueError(f"world_size must be that of torch.distributed, got {self.world_size} with {found}")
            group = dist.group.WORLD
            sample_ids = sample_ids + (dist.get_rank() << 32)  # whatever N is on other ranks
        dtype = torch.promote_types(embeddings.dtype, torch.float32)
        scale, bias = (
            torch.as_tensor(x, dtype=dtype) for x in (logit_scale, 0.0 if logit_bias is None else logit_bias)
        )
        loss = self.objective(
            embeddings,
            sample_ids,
            domain_ids,
            temperature=1 / scale,
            offset=-bias / scale,
            domain_mask=_ACROSS,
            process_group=group,
            communication=self.communication,
            normalize=False,
        )
        return {"contrastive_loss": loss} if output_dict else loss


class ClipLoss(_Loss):
    """``open_clip.ClipLoss``: the mean of the cross entropies of images over texts and of texts over images.

    With ``world_size`` above 1 the batch is that of all ranks of ``torch.distributed``: the same number on each, and under
    DistributedDataParallel the gradients of one process, whatever ``local_loss`` and ``gather_with_grad`` say.
    ``cache_labels`` and ``rank`` have nothing to do.

    Raises:
        ValueError: for ``use_horovod``, and for a ``world_size`` that is not that of ``torch.distributed``.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        if use_horovod:
            raise ValueError("use_horovod must be False: ranks are those of torch.distributed")
        super().__init__(mp_nce, world_size, "gather")


class SigLipLoss(_Loss):
    """``open_clip.SigLipLoss``: the sigmoid loss of each pair, summed over pairs and divided by N.

    Across ranks as ``ClipLoss``. ``dist_impl``: "bidir" and "shift" are ``communication="ring"``, "gather", "reduce" and None
    "gather".
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        if dist_impl not in _COMMUNICATIONS:
            raise ValueError(f"dist_impl must be one of {', '.join(map(repr, _COMMUNICATIONS))}, got {dist_impl!r}")
        super().__init__(siglip, world_size, _COMMUNICATIONS[dist_impl])
