"""What PyTorch alone can do, and the products that any of them needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problems import Batch, loss_and_gradients
from .provider import Step

# The fastest of 128 … 12288 and of 32 … 4096 rows, at N = 4096 on two Zen 4 cores.
FLOOR_PANEL = 4096
CROSS_ENTROPY_CHUNK = 512


def eager(batch: Batch) -> Step:
    return _by_domain(batch, domain_blocks_mp_nce)


def compiled(batch: Batch) -> Step:
    return ready(_by_domain(batch, compile_loss(domain_blocks_mp_nce)))


def tuned(batch: Batch) -> Step:
    return _by_view(batch, stacked_views_mp_nce)


def tuned_compiled(batch: Batch) -> Step:
    return ready(_by_view(batch, compile_loss(stacked_views_mp_nce)))


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


def compile_loss(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.config.recompile_limit = 64  # one graph for each size
    return torch.compile(loss, fullgraph=True, dynamic=False)


def ready(step: Step) -> Step:
    step()  # compiles
    return step


def eager_nt_xent(batch: Batch) -> Step:
    """As SimCLR is usually written: cross-entropy of each row with all others, its target the other view."""
    n = batch.samples
    target = torch.arange(2 * n, device=batch.embeddings.device).roll(n)

    def step():
        z = F.normalize(batch.embeddings, dim=1)
        s = (z @ z.T).float() / batch.tau
        return loss_and_gradients(F.cross_entropy(s.fill_diagonal_(-torch.inf), target), batch)

    return step


def eager_sup_con(batch: Batch) -> Step:
    return lambda: loss_and_gradients(dense_sup_con(batch.embeddings, batch.sample_ids, batch.tau), batch)


def compiled_sup_con(batch: Batch) -> Step:
    loss = compile_loss(dense_sup_con)
    return ready(lambda: loss_and_gradients(loss(batch.embeddings, batch.sample_ids, batch.tau), batch))


def dense_sup_con(z: Tensor, sample_ids: Tensor, temperature: Tensor) -> Tensor:
    z = F.normalize(z, dim=1)
    s = (z @ z.T).float() / temperature
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (sample_ids[:, None] == sample_ids) & ~itself
    lam, count = s.masked_fill(itself, -torch.inf).logsumexp(1), positive.sum(1)
    loss = lam - s.masked_fill(~positive, 0).sum(1) / count.clamp(min=1)
    return loss.masked_fill(count == 0, 0).sum() / (count > 0).sum().clamp(min=1)


def eager_with_queue(batch: Batch) -> Step:
    n = len(batch.embeddings)

    def step():
        s = (batch.embeddings @ batch.queue.T).float() / batch.temperature[0, 1]
        of_keys = s[:, -n:].flip(1).diagonal()
        return loss_and_gradients((s.logsumexp(1) - of_keys).mean(), batch)

    return step


def linear_cross_entropy(batch: Batch) -> Step:
    """In chunks, in both directions; for several texts of an image the target is as much of each."""
    z = batch.embeddings
    options = torch.nn.LinearCrossEntropyOptions(
        batch_chunk_size=CROSS_ENTROPY_CHUNK if z.device.type == "cpu" else None  # PyTorch chooses
    )
    if len(batch.views) == 2:
        of_text = of_image = batch.sample_ids[: batch.samples]
    else:
        positive = batch.sample_ids[: batch.samples, None] == batch.sample_ids[batch.samples :]
        of_text, of_image = (p.to(z.dtype) / p.sum(1, keepdim=True) for p in (positive, positive.T))

    def step():
        image, text = z[: batch.samples], z[batch.samples :]
        scale = 1 / batch.tau
        to_text = F.linear_cross_entropy(image * scale, text, of_text, options=options)
        to_image = F.linear_cross_entropy(text * scale, image, of_image, options=options)
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
