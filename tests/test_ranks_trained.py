"""Each line of the table in docs/ranks.md: parameters end with the gradient of one process with the whole batch."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.ranks import Ranks, all_right
from uniclip_kernels import MPNCELoss, cached_backward


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(images), self.text(texts)


N = 24


def _parameters_after(way: str) -> list[Tensor]:
    """Gradients of towers and of the loss's tables after a step over N samples, spread over the ranks in one way or another."""
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(N, 6, generator=generator), torch.randn(N, 5, generator=generator)
    torch.manual_seed(0)
    rank, size, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    towers, options = Towers(), {}
    alone = way == "one process"
    if not alone:
        options = dict(process_group=group, gradient_reduction="sum" if "summed" in way else "mean")
        options["communication"] = "ring" if "ring" in way else "gather"
    criterion = MPNCELoss(temperature=0.3, **options)
    mine = slice(0, N) if alone else slice(rank * N // size, (rank + 1) * N // size)
    sample_ids, domain_ids = (
        torch.arange(N)[mine].repeat(2),
        (torch.arange(2 * len(range(N)[mine])) >= len(range(N)[mine])).long(),
    )
    if "FSDP" in way:
        model = fully_shard(towers, mesh=init_device_mesh("cpu", (size,)))
    else:
        model = towers if alone or "summed" in way else DistributedDataParallel(towers)
    if "loss in DDP" in way:
        criterion = DistributedDataParallel(criterion)
    loss_of = torch.compile(criterion, backend="aot_eager") if "compiled" in way else criterion
    exchanges = []
    if "cached" in way:
        if "FSDP" not in way:
            model.register_comm_hook(
                None, lambda _, bucket: exchanges.append(1) or default_hooks.allreduce_hook(group, bucket)
            )
        chunks = list(zip(images[mine].split(5), texts[mine].split(5), strict=True))
        cached_backward(
            lambda chunk: model(*chunk),
            chunks,
            lambda *views: loss_of(torch.cat(views), sample_ids, domain_ids),
            no_sync=[model],
        )
        assert len(exchanges) == ("FSDP" not in way)
    else:
        steps = 2 if "accumulated" in way else 1
        for step in range(steps):
            with model.no_sync() if step + 1 < steps else contextlib.nullcontext():
                views = model(images[mine], texts[mine])
                (loss_of(torch.cat(views), sample_ids, domain_ids) / steps).backward()
    grads = [p.grad for module in (towers, criterion) for p in module.parameters()]
    grads = [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]
    if "summed" in way:
        for grad in grads:
            dist.all_reduce(grad)
    return grads


@pytest.mark.parametrize(
    "way",
    [
        "DDP, the loss without a wrapper",
        "DDP, loss in DDP too",
        "summed gradients, no DDP",
        "DDP, ring",
        "summed gradients, ring",
        "DDP, accumulated over two steps",
        "DDP, cached in chunks",
        "DDP, cached in chunks, ring",
    ],
)
def test_parameters_get_the_gradient_of_one_process_with_the_whole_batch(way, group):
    """Each line of the table in docs/ranks.md."""
    _, run = group
    _assert_that_of_one_process(way, run)


@pytest.mark.parametrize("way", ["FSDP", "FSDP, cached in chunks", "DDP, compiled"])
def test_fsdp_and_compile_likewise(way, pair):
    _assert_that_of_one_process(way, pair)


def _assert_that_of_one_process(way: str, run: Ranks) -> None:
    expected = all_right(run(_parameters_after, "one process"))[0]
    for grads in all_right(run(_parameters_after, way)):
        for got, right in zip(grads, expected, strict=True):
            torch.testing.assert_close(got, right, rtol=2e-5, atol=1e-7)
