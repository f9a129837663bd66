"""Ours, as it is called for each objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uniclip_kernels import mp_nce, siglip, sup_con

from ..definitions import SIGLIP_BIAS
from ..problems import Batch, loss_and_gradients
from .provider import Step


def ours(batch: Batch) -> Step:
    return _ours(batch, on_gpu="triton")


def ours_in_cuda(batch: Batch) -> Step:
    return _ours(batch, on_gpu="cuda")


def _ours(batch: Batch, on_gpu: str) -> Step:
    backend = _backend(batch, on_gpu)

    def step():
        loss = mp_nce(
            batch.embeddings,
            batch.sample_ids,
            batch.domain_ids,
            temperature=batch.temperature,
            offset=batch.offset,
            domain_mask=batch.domain_mask,
            normalize=batch.normalize,
            backend=backend,
            **batch.candidates(),
        )
        return loss_and_gradients(loss, batch)

    return step


def _backend(batch: Batch, on_gpu: str = "triton") -> str:
    return on_gpu if batch.embeddings.is_cuda else "cpu"


def ours_nt_xent(batch: Batch) -> Step:
    return _of_one_domain(batch, mp_nce)


def ours_sup_con(batch: Batch) -> Step:
    return _of_one_domain(batch, sup_con)


def _of_one_domain(batch: Batch, loss: Callable[..., Tensor]) -> Step:
    options = {"normalize": batch.normalize, "backend": _backend(batch)}
    return lambda: loss_and_gradients(loss(batch.embeddings, batch.sample_ids, temperature=batch.tau, **options), batch)


def ours_sigmoid(batch: Batch) -> Step:
    options = {"domain_mask": batch.domain_mask, "normalize": batch.normalize, "backend": _backend(batch)}

    def step():
        tau = batch.tau
        ids = batch.sample_ids, batch.domain_ids
        loss = siglip(batch.embeddings, *ids, temperature=tau, offset=-SIGLIP_BIAS * tau, **options)
        return loss_and_gradients(loss, batch)

    return step


def ours_with_queue_as_rows(batch: Batch) -> Step:
    """What candidates save: the queue's rows are anchors too, of weight 0."""
    n, queue = len(batch.embeddings), batch.candidates()
    weight = (torch.arange(n + len(batch.queue), device=batch.queue.device) < n).float()
    ids = (torch.cat([batch.sample_ids, queue["candidate_sample_ids"]]), weight.eq(0).long())

    def step():
        loss = mp_nce(
            torch.cat([batch.embeddings, batch.queue]),
            *ids,
            temperature=batch.temperature,
            domain_mask=batch.domain_mask,
            anchor_weight=weight,
            normalize=batch.normalize,
        )
        return loss_and_gradients(loss, batch)

    return step


def replayed(prepare: Callable[[Batch], Step]) -> Callable[[Batch], Step]:
    """The step captured in a CUDA graph, whose replay costs the host one launch."""

    def capture(batch: Batch) -> Step:
        step = prepare(batch)
        if not batch.embeddings.is_cuda:  # a dry run
            return step
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()

        def replay() -> list[Tensor]:
            graph.replay()
            return results

        return replay

    return capture
