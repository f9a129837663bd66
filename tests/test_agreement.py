"""The losses of packages that are in wide use, with their names for what is here an objective and its arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import uniclip_kernels
from tests.cases import mask_without
from uniclip_kernels import reference

IMPLEMENTATIONS = {"reference": reference, "cpu": uniclip_kernels}
TAU = 0.1

implementations = pytest.mark.parametrize("of", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def assert_agree(found: torch.Tensor, expected: torch.Tensor, *leaves: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for pair in zip(*(torch.autograd.grad(loss, leaves) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


@pytest.fixture
def metric_learning():
    return pytest.importorskip("pytorch_metric_learning.losses", reason="in the extra `bench`")


@pytest.fixture
def open_clip():
    return pytest.importorskip("open_clip.loss", reason="in the extra `bench`")


@pytest.fixture
def labels():
    return torch.randint(6, (40,))


def others(z: torch.Tensor, labels: torch.Tensor) -> dict:
    """Rows that the anchors, of domain 0, are compared with alone: as ``ref_emb``, or keys and a queue."""
    domains = torch.ones_like(labels)
    candidates = dict(candidates=z, candidate_sample_ids=labels, candidate_domain_ids=domains)
    return candidates | dict(domain_mask=mask_without(2, (0, 0)))


@implementations
def test_nt_xent_over_anchors(of, metric_learning, labels):
    """NTXentLoss pairs each positive with the negatives alone."""
    z, per_anchor = leaf(40, 8), pytest.importorskip("pytorch_metric_learning.reducers").PerAnchorReducer()
    theirs = metric_learning.NTXentLoss(TAU, reducer=per_anchor)
    assert_agree(of.mp_nce(z, labels, temperature=TAU), theirs(z, labels), z)


@implementations
def test_nt_xent_over_pairs(of, metric_learning, labels):
    """Its default is the mean over pairs: an anchor weighs as many as it has positives."""
    z, num_positives = leaf(40, 8), ((labels[:, None] == labels).sum(1) - 1).double()
    ours = of.mp_nce(z, labels, temperature=TAU, anchor_weight=num_positives)
    assert_agree(ours, metric_learning.NTXentLoss(TAU)(z, labels), z)


@implementations
def test_nt_xent_with_other_rows(of, metric_learning, labels):
    z, y, of_y = leaf(40, 8), leaf(25, 8), torch.randint(6, (25,))
    num_positives = (labels[:, None] == of_y).sum(1).double()
    ours = of.mp_nce(z, labels, temperature=TAU, anchor_weight=num_positives, **others(y, of_y))
    assert_agree(ours, metric_learning.NTXentLoss(TAU)(z, labels, ref_emb=y, ref_labels=of_y), z, y)


@implementations
def test_sup_con(of, metric_learning, labels):
    z = leaf(40, 8)
    assert_agree(of.sup_con(z, labels, temperature=TAU), metric_learning.SupConLoss(TAU)(z, labels), z)


@implementations
def test_sup_con_with_other_rows(of, metric_learning, labels):
    z, y, of_y = leaf(40, 8), leaf(25, 8), torch.randint(5, (25,))  # so that some rows have no positive
    ours = of.sup_con(z, labels, temperature=TAU, **others(y, of_y))
    assert_agree(ours, metric_learning.SupConLoss(TAU)(z, labels, ref_emb=y, ref_labels=of_y), z, y)


@implementations
@pytest.mark.parametrize("bias", [0.0, -10.0])
@pytest.mark.parametrize("objective", ["ClipLoss", "SigLipLoss"])
def test_open_clip(of, open_clip, objective, bias):
    """Images are compared to texts alone. A bias makes no difference to CLIP; SigLIP's is -b / τ."""
    image, text, scale = leaf(30, 8), leaf(30, 8), torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    ids, domains = torch.arange(30).repeat(2), torch.arange(60) // 30
    ours = {"ClipLoss": of.mp_nce, "SigLipLoss": of.siglip}[objective](
        torch.cat([image, text]),
        ids,
        domains,
        temperature=1 / scale,
        offset=-bias / scale,
        domain_mask=mask_without(2, (0, 0), (1, 1)),
    )
    theirs = getattr(open_clip, objective)()(F.normalize(image, dim=1), F.normalize(text, dim=1), scale, bias)
    assert_agree(ours, theirs, image, text, scale)


@implementations
@pytest.mark.parametrize("objective", ["mp_nce", "sup_con", "mil_nce"])
def test_moco(of, objective):
    """Each query against its key and a queue; with one positive three objectives are one."""
    query, key, queue = leaf(20, 8), leaf(20, 8), leaf(50, 8)
    q, k, more = (F.normalize(z, dim=1) for z in (query, key, queue))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ more.T], dim=1) / TAU
    theirs = F.cross_entropy(logits, torch.zeros(20, dtype=torch.long))
    # A key is no negative of other queries: there are none but the queue's.
    excluded = dict(exclude_ids=torch.zeros(20).long(), candidate_exclude_ids=torch.arange(70).ge(20) * -1)
    candidates = others(torch.cat([key, queue]), torch.arange(70))
    ours = getattr(of, objective)(query, torch.arange(20), temperature=TAU, **candidates, **excluded)
    assert_agree(ours, theirs, query, key, queue)


@implementations
@pytest.mark.parametrize("objective", ["mp_nce", "sup_con", "mil_nce"])
def test_simclr(of, objective):
    """Two views of each sample, every other row a negative."""
    z = leaf(40, 8)
    unit = F.normalize(z, dim=1)
    logits = (unit @ unit.T / TAU).masked_fill(torch.eye(40, dtype=torch.bool), -torch.inf)
    theirs = F.cross_entropy(logits, torch.arange(40).roll(20))
    assert_agree(getattr(of, objective)(z, torch.arange(20).repeat(2), temperature=TAU), theirs, z)
