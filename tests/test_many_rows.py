"""32768 rows over four ranks, against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests import brute_force
from tests.evaluate import assert_close
from tests.many_rows import mp_nce_of_two_views
from tests.ranks import RankError, ranks
from uniclip_kernels import mp_nce

N, D, SIZE = 16384, 32, 4
TABLES = {"temperature": [[0.07, 0.06], [0.06, 0.08]], "offset": [[0.1, 0.0], [0.0, 0.05]]}
FIELDS = ("loss", "grad_embeddings", "grad_temperature", "grad_offset")


def unit_rows(n: int, d: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return F.normalize(torch.randn(2 * n, d, generator=generator), dim=1)


def tables(dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: torch.tensor(table, dtype=dtype) for name, table in TABLES.items()}


def test_the_definition_is_that_of_the_double_loop():
    n = 12
    unit, some = unit_rows(n, 5).double(), torch.arange(2 * n)[1::3]
    rows = brute_force.Rows(unit.numpy(), [*range(n)] * 2, [0] * n + [1] * n, [-1] * 2 * n)
    none = brute_force.Rows(np.zeros((0, 5)), [], [], [])
    of_pairs, every = (t.numpy() for t in tables(torch.float64).values()), np.ones((2, 2))
    weights = every, every.astype(bool), np.ones(2 * n)
    answer = brute_force.differentiate("mp_nce", rows, none, *of_pairs, *weights, normalize=False)
    for name, found in mp_nce_of_two_views(unit, **tables(torch.float64), rows=some).items():
        expected = getattr(answer, name)
        if name == "grad_embeddings":
            expected = brute_force.Value(*(x[some.numpy()] for x in expected))
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-12, atol=1e-14)
        for measure in ("scale", "sensitivity"):  # no budget becomes larger
            assert (getattr(found, measure) <= getattr(expected, measure) * (1 + 1e-6)).all()


@pytest.fixture(scope="module")
def some() -> Tensor:
    """Rows whose gradient is looked at: of either view, and of each rank."""
    return torch.arange(2 * N)[5::8]


@pytest.fixture(scope="module")
def expected(some):
    return mp_nce_of_two_views(unit_rows(N, D).double(), **tables(torch.float64), rows=some)


def _part(communication: str) -> tuple[np.ndarray, ...]:
    """Loss, gradients of own rows (2, N / SIZE, D), and of the tables."""
    rank, n = dist.get_rank(), N // SIZE
    own = unit_rows(N, D).view(2, N, D)[:, rank * n : (rank + 1) * n].reshape(-1, D).requires_grad_()
    of_pairs = {name: table.requires_grad_() for name, table in tables(torch.float32).items()}
    options = dict(process_group=dist.group.WORLD, gradient_reduction="sum", communication=communication)
    sample_ids, domain_ids = (torch.arange(n) + rank * n).repeat(2), torch.arange(2).repeat_interleave(n)
    loss = mp_nce(own, sample_ids, domain_ids, **of_pairs, normalize=False, **options)
    grads = torch.autograd.grad(loss, [own, *of_pairs.values()])
    return loss.item(), grads[0].view(2, n, D).numpy(), *(g.numpy() for g in grads[1:])


@pytest.mark.parametrize("communication", ["gather", "ring"])
def test_32768_rows_over_four_ranks(communication, expected, some):
    with ranks(SIZE) as run:
        parts = run(_part, communication)
    if errors := [part for part in parts if isinstance(part, RankError)]:
        raise errors[0]
    losses, rows, *of_pairs = zip(*parts, strict=True)
    assert len(set(losses)) == 1
    found = np.array(losses[0]), np.concatenate(rows, 1).reshape(-1, D)[some], *map(sum, of_pairs)
    for name, got in zip(FIELDS, found, strict=True):
        assert_close(
            name, got.astype(float), expected[name], np.full(got.shape, np.nan), 0, torch.float32, torch.float32
        )
