"""RowQueue: first in, first out; saved, copied and cast with the module; no graph; as candidates of the loss."""

import copy

import pytest
import torch
import torch.nn.functional as F

from uniclip_kernels import RowQueue, mp_nce, stack_views


def held(queue):
    """Rows by the order in which they were pushed: the first column of each, with its ids."""
    filled = queue.sample_ids >= 0
    return {
        r: (s, d)
        for r, s, d in zip(
            queue.rows[filled, 0].tolist(),
            *(t[filled].tolist() for t in (queue.sample_ids, queue.domain_ids)),
            strict=True,
        )
    }


@pytest.mark.parametrize("steps", [[3], [5], [3, 3], [2, 2, 2, 2], [0, 4, 0, 3], [12], [4, 11]])
def test_keeps_the_last_rows_with_their_ids(steps):
    queue, pushed = RowQueue(5, 2, dtype=torch.float32), []
    for n in steps:
        first = len(pushed)
        rows = torch.arange(first, first + n, dtype=torch.float32)[:, None].expand(n, 2)
        ids = torch.arange(n) + 10 * first
        queue.push(rows, ids, ids % 3)
        pushed += list(zip(rows[:, 0].tolist(), ids.tolist(), (ids % 3).tolist(), strict=True))
    assert held(queue) == {r: (s, d) for r, s, d in pushed[-5:]}
    assert len(held(queue)) == min(5, len(pushed))


def test_rows_without_ids_are_negatives_of_everything():
    queue, z = RowQueue(8, 4), torch.randn(6, 4)
    ids = torch.arange(6) // 2
    for _ in range(3):
        queue.push(torch.randn(3, 4))
    loss = mp_nce(z, ids, **queue.candidates(z.dtype))
    fresh = torch.arange(8) + 100
    assert torch.equal(loss, mp_nce(z, ids, candidates=queue.rows.float(), candidate_sample_ids=fresh))
    assert queue.sample_ids.unique().numel() == 8


def test_moco():
    """As docs/losses.md has it: the negatives of queries are those of the queue."""
    queries, keys, old = (F.normalize(torch.randn(n, 4)) for n in (6, 6, 20))
    queue = RowQueue(20, 4, dtype=torch.float32)
    queue.push(old, domain_ids=torch.ones(20, dtype=torch.long))
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ old.T], 1) / 0.07
    embeddings, sample_ids, domain_ids = stack_views([queries, keys], [0, 1])
    found = mp_nce(
        embeddings,
        sample_ids,
        domain_ids,
        domain_mask=torch.tensor([[False, True], [True, False]]),
        anchor_weight=(domain_ids == 0).float(),
        exclude_ids=torch.zeros_like(sample_ids),
        **queue.candidates(),
    )
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)))


def test_what_was_not_pushed_yet_is_padding():
    queue, z = RowQueue(100, 4, dtype=torch.float32), torch.randn(6, 4)
    ids = torch.arange(6) // 2
    assert torch.equal(mp_nce(z, ids, **queue.candidates()), mp_nce(z, ids))
    keys = torch.randn(10, 4)
    queue.push(keys, torch.arange(10))
    expected = mp_nce(z, ids, candidates=keys, candidate_sample_ids=torch.arange(10))
    torch.testing.assert_close(mp_nce(z, ids, **queue.candidates()), expected)


def test_holds_no_graph_and_may_be_pushed_to_before_the_backward_pass():
    queue, z = RowQueue(4, 3, dtype=torch.float32), torch.randn(4, 3, requires_grad=True)
    queue.push(z.detach(), torch.arange(4))
    loss = mp_nce(z, torch.arange(4), **queue.candidates())
    queue.push(z * 2, torch.arange(4))
    assert not queue.rows.requires_grad
    loss.backward()
    assert z.grad.abs().sum() > 0


def test_state_dict_and_copies():
    queue = RowQueue(4, 3)
    queue.push(torch.randn(3, 3), torch.arange(3))
    other = RowQueue(4, 3)
    other.load_state_dict(queue.state_dict())
    copies = other, copy.deepcopy(queue)
    for q in (queue, *copies):
        q.push(torch.ones(2, 3), torch.tensor([7, 8]))
    for copied in copies:
        assert torch.equal(copied.rows, queue.rows)
        assert torch.equal(copied.sample_ids, queue.sample_ids)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda q: RowQueue(0, 3), ValueError, "size must be at least 1, got 0"),
        (lambda q: RowQueue(2.0, 3), TypeError, "size must be an integer, got 2.0"),
        (lambda q: RowQueue(2, True), TypeError, "dim must be an integer, got True"),
        (lambda q: RowQueue(2, 3, dtype=torch.int8), TypeError, "dtype must be a floating-point dtype"),
        (lambda q: q.push([1.0]), TypeError, "rows must be a tensor, got list"),
        (lambda q: q.push(torch.ones(2, 4)), ValueError, "rows must have D of 3 on cpu, got 4 on cpu"),
        (lambda q: q.push(torch.ones(2, 3), torch.ones(2)), TypeError, "sample_ids must be an integer tensor"),
        (
            lambda q: q.push(torch.ones(2, 3), None, torch.ones(3).long()),
            ValueError,
            r"domain_ids must have shape \(2,\)",
        ),
        (
            lambda q: mp_nce(torch.ones(2, 3), torch.arange(2), **q.candidates()),
            ValueError,
            "candidates must have the D, dtype",
        ),
    ],
)
def test_errors_name_the_argument(call, error, message):
    queue = RowQueue(4, 3)
    with pytest.raises(error, match=message):
        call(queue)
    assert queue.pushed == 0
