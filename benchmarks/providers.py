"""The competitors. Each takes a ``Batch`` and returns a step: one forward and backward pass, with its results."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from uniclip_kernels import mp_nce

from .problems import Batch, expected, expected_products, loss_and_gradients

Step = Callable[[], list[Tensor]]

# The fastest of 128 … 12288 and of 32 … 4096 rows, at N = 4096 on two Zen 4 cores.
FLOOR_PANEL = 4096
CROSS_ENTROPY_CHUNK = 512
SIGLIP_BIAS = -10.0  # where SigLIP begins


def ours(batch: Batch) -> Step:
    return _ours(batch, on_gpu="triton")


def ours_in_cuda(batch: Batch) -> Step:
    return _ours(batch, on_gpu="cuda")


def _ours(batch: Batch, on_gpu: str) -> Step:
    backend = on_gpu if batch.embeddings.is_cuda else "cpu"

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


def eager(batch: Batch) -> Step:
    return _by_domain(batch, domain_blocks_mp_nce)


def compiled(batch: Batch) -> Step:
    return _ready(_by_domain(batch, _compile(domain_blocks_mp_nce)))


def tuned(batch: Batch) -> Step:
    return _by_view(batch, stacked_views_mp_nce)


def tuned_compiled(batch: Batch) -> Step:
    return _ready(_by_view(batch, _compile(stacked_views_mp_nce)))


def domain_blocks_mp_nce(
    z: Tensor, sample_ids: Tensor, sizes: list[int], temperature: Tensor, offset: Tensor
) -> Tensor:
    """MP-NCE by its formula, for rows of any sample that are grouped by domain; ``sizes`` rows each.

    Each pair of domains is a block with scalars for τ and b, so that no (M, M) table is gathered or stored.
    """
    parts, ids = F.normalize(z, dim=1).split(sizes), sample_ids.split(sizes)
    losses, counts = [], []
    for a in range(len(sizes)):
        s, same, lse = [], [], []
        for c in range(len(sizes)):
            pair = min(a, c), max(a, c)
            s.append(((parts[a] @ parts[c].T).float() - offset[pair]) / temperature[pair])
            same.append(ids[a][:, None] == ids[c][None, :])
            lse.append(s[c].masked_fill(same[c], -torch.inf).logsumexp(1))
        nu = torch.stack(lse).logsumexp(0)[:, None]
        same[a] = same[a] & ~torch.eye(sizes[a], dtype=torch.bool, device=z.device)
        counts.append(sum(block.sum(1) for block in same))
        losses.append(sum(F.softplus(nu - block).masked_fill(~p, 0).sum(1) for block, p in zip(s, same, strict=True)))
    count = torch.cat(counts)
    return (torch.cat(losses) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def stacked_views_mp_nce(z: Tensor, domains: tuple[int, ...], temperature: Tensor, offset: Tensor) -> Tensor:
    """MP-NCE where row n of every view is sample n, and nothing else: the least work that PyTorch can be told to do.

    Positives lie on diagonals of blocks, and are row-wise products; a block serves its rows and, turned, its columns;
    τ goes into the rows and b into the logsumexp, so that no pass over a matrix is spent on them.
    """
    views = F.normalize(z, dim=1).unflatten(0, (len(domains), -1))
    every = range(len(domains))

    def tables(v: int, u: int) -> tuple[Tensor, Tensor]:
        pair = min(domains[v], domains[u]), max(domains[v], domains[u])
        return temperature[pair], offset[pair]

    lse: list[list[Tensor]] = [[] for _ in every]
    for v in every:
        for u in every[v:]:
            tau, b = tables(v, u)
            s = ((views[v] / tau) @ views[u].T).float()
            with torch.no_grad():
                s.fill_diagonal_(-torch.inf)  # e^-inf passes no gradient
            lse[v].append(s.logsumexp(1) - b / tau)
            if u != v:
                lse[u].append(s.logsumexp(0) - b / tau)
    loss = 0
    for v in every:
        nu = torch.stack(lse[v]).logsumexp(0)
        for u in every:
            if u != v:
                tau, b = tables(v, u)
                loss = loss + F.softplus(nu - ((views[v] * views[u]).sum(1) - b) / tau).mean()
    return loss / (len(domains) * (len(domains) - 1))


def _by_domain(batch: Batch, loss: Callable[..., Tensor]) -> Step:
    sizes = torch.bincount(batch.domain_ids).tolist()
    args = batch.embeddings, batch.sample_ids, sizes, batch.temperature, batch.offset
    return lambda: loss_and_gradients(loss(*args), batch)


def _by_view(batch: Batch, loss: Callable[..., Tensor]) -> Step:
    args = batch.embeddings, batch.views, batch.temperature, batch.offset
    return lambda: loss_and_gradients(loss(*args), batch)


def _compile(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.config.recompile_limit = 64  # one graph for each size
    return torch.compile(loss, fullgraph=True, dynamic=False)


def _ready(step: Step) -> Step:
    step()  # compiles
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


def eager_with_queue(batch: Batch) -> Step:
    tau, n = batch.temperature[0, 1], len(batch.embeddings)

    def step():
        s = (batch.embeddings @ batch.queue.T).float() / tau
        of_keys = s[:, -n:].flip(1).diagonal()
        return loss_and_gradients((s.logsumexp(1) - of_keys).mean(), batch)

    return step


def open_clip(batch: Batch) -> Step:
    return image_and_text(batch, _clip_loss())


def open_clip_compiled(batch: Batch) -> Step:
    return _ready(image_and_text(batch, _compile(_clip_loss())))


def _clip_loss() -> torch.nn.Module:
    return open_clip_losses().ClipLoss()


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
    scale = 1 / batch.temperature[0, 1]
    return lambda: loss_and_gradients(loss(*batch.embeddings.chunk(2), scale), batch)


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
    loss = MemoryEfficientCLIPLoss(batch.temperature[0, 1].item(), normalized_inputs=True, stable=False)
    return image_and_text(batch, lambda image, text, scale: loss(image, text))


def siglip(batch: Batch) -> Step:
    from siglip_kernel import fused_siglip_loss

    bias = torch.full_like(batch.temperature[0, 1], SIGLIP_BIAS)
    return image_and_text(batch, lambda image, text, scale: fused_siglip_loss(image, text, scale.log(), bias))


def expected_siglip(batch: Batch) -> list[Tensor]:
    z = batch.embeddings.detach().double().requires_grad_()
    image, text = z.chunk(2)
    s = image @ text.T / batch.temperature[0, 1].double() + SIGLIP_BIAS
    target = torch.eye(batch.samples, dtype=s.dtype, device=s.device)
    loss = F.binary_cross_entropy_with_logits(s, target, reduction="sum") / batch.samples
    return [loss.detach(), *torch.autograd.grad(loss, z)]


def linear_cross_entropy(batch: Batch) -> Step:
    chunk = CROSS_ENTROPY_CHUNK if batch.embeddings.device.type == "cpu" else None  # PyTorch chooses
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    scale = 1 / batch.temperature[0, 1]

    def step():
        image, text = batch.embeddings.chunk(2)
        target = batch.sample_ids[: len(image)]
        to_text = F.linear_cross_entropy(image * scale, text, target, options=options)
        to_image = F.linear_cross_entropy(text * scale, image, target, options=options)
        return loss_and_gradients((to_text + to_image) / 2, batch)

    return step


def floor(batch: Batch) -> Step:
    """(Z Zᵀ) Z in panels of rows: 4 M² D flops, the least that forward and backward need, as nothing but products."""
    z = batch.embeddings.detach()
    panel = min(FLOOR_PANEL, len(z))
    s = z.new_empty(panel, len(z))

    def step():
        product = torch.empty_like(z)
        for i in range(0, len(z), panel):
            rows = z[i : i + panel]
            torch.mm(torch.mm(rows, z.T, out=s[: len(rows)]), z, out=product[i : i + panel])
        return [product]

    return step


def expected_with_queue(batch: Batch) -> list[Tensor]:
    return expected(batch)  # and never that of large batches, which know no queue


@dataclass(frozen=True)
class Provider:
    name: str
    prepare: Callable[[Batch], Step]
    objectives: tuple[str, ...]
    # What a step takes at most, to leave out what cannot end:
    matrices: float  # M x M matrices alive at once
    floors: float  # its time in times of the floor
    cpu_dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    gpu_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    mode: str = "forward+backward"
    expected: Callable[[Batch], list[Tensor]] = expected
    needs_small_batch: bool = True  # `expected` makes M x M matrices
    module: str = "torch"  # that must be there; or "module:name"
    keeps_memory: bool = False  # what a step takes, it holds from the time that it is prepared

    @property
    def is_ours(self) -> bool:
        return self.name.startswith(OURS)

    @property
    def is_foreign(self) -> bool:
        """Neither ours nor PyTorch's."""
        return not self.is_ours and self.module.split(".")[0].split(":")[0] != "torch"

    @property
    def backend(self) -> str | None:
        """Ours on a GPU."""
        return ("cuda" if self.name.startswith(OURS_IN_CUDA) else "triton") if self.is_ours else None

    def dtypes(self, device: str) -> tuple[torch.dtype, ...]:
        return self.cpu_dtypes if device == "cpu" else self.gpu_dtypes


QUEUE_AS_ROWS = "uniclip-kernels, queue as rows"
OURS, OURS_IN_CUDA, FLOOR = "uniclip-kernels", "uniclip-kernels, cuda backend", "torch.mm floor"
EAGER, COMPILED = "eager PyTorch", "torch.compile"
TUNED, TUNED_COMPILED = "eager, tuned for views", "torch.compile, tuned for views"
OPEN_CLIP, OPEN_CLIP_COMPILED = "open_clip ClipLoss", "torch.compile of ClipLoss"
LINEAR_CROSS_ENTROPY, INF_CL, MEMEFF = "linear_cross_entropy", "Inf-CL", "memeff"
SIGLIP = "siglip-kernel (sigmoid loss)"
_GPU_ONLY = {"cpu_dtypes": ()}
_GPU_BF16 = _GPU_ONLY | {"gpu_dtypes": (torch.bfloat16,)}  # they multiply float32 as TF32

PROVIDERS = (
    Provider(OURS, ours, ("MP-NCE", "InfoNCE"), 0, 1.5, (torch.float32, torch.bfloat16)),
    Provider(OURS_IN_CUDA, ours_in_cuda, ("MP-NCE", "InfoNCE"), 0, 1.5, **_GPU_ONLY, module="uniclip_kernels._cuda"),
    Provider(EAGER, eager, ("MP-NCE",), 6, 6),
    Provider(OURS, ours, ("Queue",), 0, 1, (torch.float32, torch.bfloat16), expected=expected_with_queue),
    Provider(QUEUE_AS_ROWS, ours_with_queue_as_rows, ("Queue",), 0, 1, expected=expected_with_queue),
    Provider(EAGER, eager_with_queue, ("Queue",), 0.2, 0.3, expected=expected_with_queue),
    Provider(COMPILED, compiled, ("MP-NCE",), 4, 5),
    Provider(TUNED, tuned, ("MP-NCE",), 2, 3),
    Provider(TUNED_COMPILED, tuned_compiled, ("MP-NCE",), 2, 2),
    Provider(
        FLOOR,
        floor,
        ("MP-NCE",),
        0,
        1,
        (torch.float32, torch.bfloat16),
        mode="products",
        expected=expected_products,
        needs_small_batch=False,
    ),
    Provider(OPEN_CLIP, open_clip, ("InfoNCE",), 1.5, 2, module="open_clip"),
    Provider(OPEN_CLIP_COMPILED, open_clip_compiled, ("InfoNCE",), 1, 2, **_GPU_ONLY, module="open_clip"),
    Provider(
        LINEAR_CROSS_ENTROPY,
        linear_cross_entropy,
        ("InfoNCE",),
        0,
        1.5,
        module="torch.nn:LinearCrossEntropyOptions",
    ),
    Provider(INF_CL, inf_cl, ("InfoNCE",), 0, 3, **_GPU_BF16, module="inf_cl"),
    Provider(MEMEFF, memeff, ("InfoNCE",), 0, 3, **_GPU_BF16, module="memeff"),
    Provider(
        SIGLIP,
        siglip,
        ("InfoNCE",),
        0,
        1.5,
        **_GPU_BF16,
        mode="forward+backward, sigmoid",
        expected=expected_siglip,
        module="siglip_kernel",
    ),
)


#: The same steps where the host is the bottleneck.
REPLAYED = tuple(
    replace(p, name=f"{p.name}, CUDA graph", prepare=replayed(p.prepare), objectives=("MP-NCE",), keeps_memory=True)
    for p in PROVIDERS
    if p.name in (OURS, OURS_IN_CUDA, TUNED_COMPILED)
)
