"""pytorch-metric-learning's losses and ours: the same values and gradients, with its reducers and in its wrappers."""

from __future__ import annotations

import pytest
import torch

from tests.test_agreement import assert_agree, leaf

theirs = pytest.importorskip("pytorch_metric_learning.losses", reason="in the extra `test`")

from pytorch_metric_learning import distances, miners, reducers, regularizers  # noqa: E402

from uniclip_kernels import mp_nce  # noqa: E402
from uniclip_kernels.integrations import pytorch_metric_learning as ours  # noqa: E402

NAMES = ["NTXentLoss", "SupConLoss"]
both = (ours, theirs)

LABELS = {
    "views": torch.arange(20).repeat(2),
    "classes": torch.arange(40) % 7 - 3,  # a label below 0 is one as any other
    "some alone": torch.arange(40).clamp(max=33) // 2,
    "no negatives for one": torch.zeros(40, dtype=torch.long),
    "no positives": torch.arange(40),
}
of_labels = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
of_names = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize(
    "reducer", [None, reducers.MeanReducer(), reducers.AvgNonZeroReducer(), reducers.PerAnchorReducer()], ids=str
)
@of_labels
@of_names
def test_is_the_loss_of_pytorch_metric_learning(name, labels, reducer):
    z = leaf(40, 8)
    assert_agree(*(getattr(package, name)(reducer=reducer)(z, labels) for package in both), z)


@of_labels
@of_names
def test_with_references(name, labels):
    z, ref, ref_labels = leaf(40, 8), leaf(30, 8), torch.randint(-3, 9, (30,))
    assert_agree(*(getattr(p, name)(0.2)(z, labels, ref_emb=ref, ref_labels=ref_labels) for p in both), z, ref)


@pytest.mark.parametrize("symmetric", [True, False])
@of_names
def test_in_self_supervised_loss(name, symmetric):
    z, view = leaf(20, 8), leaf(20, 8)
    assert_agree(*(theirs.SelfSupervisedLoss(getattr(p, name)(), symmetric=symmetric)(z, view) for p in both), z, view)


@of_names
def test_in_cross_batch_memory(name):
    """Until it is full and after; the copies of the batch are in it, and none is compared with its own row."""
    memories = [theirs.CrossBatchMemory(getattr(package, name)(), 8, memory_size=50) for package in both]
    for _ in range(6):
        z, labels = leaf(20, 8), torch.randint(12, (20,))
        assert_agree(*(memory(z, labels) for memory in memories), z)


@of_names
def test_in_cross_batch_memory_with_keys_apart(name):
    memories = [theirs.CrossBatchMemory(getattr(package, name)(), 8, memory_size=50) for package in both]
    keys = torch.arange(20) % 2 == 1
    for _ in range(3):
        z, labels = leaf(20, 8), torch.randint(6, (20,))
        assert_agree(*(memory(z, labels, enqueue_mask=keys) for memory in memories), z)


@pytest.mark.parametrize("temperature", [0.025, 0.1, 1.0])
@of_names
def test_in_cross_batch_memory_in_float32(name, temperature):
    """What is left out outweighs all else; that costs no digits."""
    memories = [theirs.CrossBatchMemory(getattr(package, name)(temperature), 8, memory_size=99) for package in both]
    for _ in range(3):
        z, labels = leaf(30, 8), torch.randint(12, (30,))
        narrow = z.detach().float().requires_grad_()
        found, expected = (memory(x, labels) for memory, x in zip(memories, (narrow, z), strict=True))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        grads = torch.autograd.grad(found, narrow)[0].double(), torch.autograd.grad(expected, z)[0]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4 * grads[1].abs().max().item())


@of_names
def test_with_a_regularizer(name):
    z, labels = leaf(40, 8), torch.arange(40) % 7
    options = dict(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.3)
    assert_agree(*(getattr(package, name)(**options)(z, labels) for package in both), z)


def test_mp_nce():
    """The mean over the anchors that have a positive; NTXentLoss over all anchors."""
    z, labels = leaf(40, 8), LABELS["some alone"]
    assert_agree(ours.MPNCELoss(0.2)(z, labels), mp_nce(z, labels, temperature=0.2), z)
    ref, ref_labels = leaf(30, 8), torch.arange(30)
    found, expected = (
        loss(z, labels, ref_emb=ref, ref_labels=ref_labels)
        for loss in (ours.MPNCELoss(0.2), theirs.NTXentLoss(0.2, reducer=reducers.MeanReducer()))
    )
    assert_agree(found, expected, z, ref)  # one positive at most: pairs are anchors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.NTXentLoss(distance=distances.LpDistance()), "distance must be CosineSimilarity"),
        (lambda: ours.SupConLoss(distance=distances.CosineSimilarity(power=2)), "distance must be CosineSimilarity"),
        (lambda: ours.NTXentLoss(reducer=reducers.SumReducer()), "reducer must be MeanReducer, .*, got SumReducer"),
        (
            lambda: ours.NTXentLoss(reducer=reducers.PerAnchorReducer(aggregation_func=lambda x, n: x.sum(1))),
            "reducer must be .* as they come, got PerAnchorReducer",
        ),
        (
            lambda: theirs.CrossBatchMemory(ours.SupConLoss(0.02), 2)(leaf(4, 2), torch.arange(4) // 2),
            "temperature must be at least 0.023 in CrossBatchMemory, got 0.02",
        ),
        (lambda: ours.MPNCELoss()(leaf(4, 2)), "labels must be given"),
        (lambda: ours.MPNCELoss()(leaf(4, 2), torch.arange(4), ref_emb=leaf(4, 2)), "labels must be given"),
        (
            lambda: ours.SupConLoss()(
                z := leaf(40, 2), y := LABELS["classes"], miners.MultiSimilarityMiner(0.01)(z, y)
            ),
            "indices_tuple must be None or what CrossBatchMemory makes",
        ),
        (
            lambda: ours.SupConLoss()(z := leaf(40, 2), y := LABELS["classes"], miners.TripletMarginMiner()(z, y)),
            "indices_tuple must be None or what CrossBatchMemory makes",
        ),
    ],
)
def test_what_cannot_be_honoured_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
