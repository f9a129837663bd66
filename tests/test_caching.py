"""cached_backward gives the gradients of the plain step, whatever the chunks, with dropout, under autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from uniclip_kernels import MPNCELoss, cached_backward, stack_views, sup_con


class Encoders(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 8))
        self.text = nn.Linear(5, 8)

    def forward(self, batch):
        images, texts = batch
        return self.image(images), self.text(texts)


def loss_of(criterion):
    return lambda image, text: criterion(*stack_views([image, text], [0, 1]))


def gradients(*modules):
    return [p.grad for module in modules for p in module.parameters()]


def chunked(batch, size):
    return list(zip(*(x.split(size) for x in batch), strict=True))


@pytest.mark.parametrize("size", [1, 4, 5, 24, 100])
@pytest.mark.parametrize("autocast", [False, True])
def test_is_the_plain_step(size, autocast):
    batch, model, criterion = (torch.randn(24, 6), torch.randn(24, 5)), Encoders(), MPNCELoss()
    other, other_criterion = copy.deepcopy(model), copy.deepcopy(criterion)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = loss_of(criterion)(*model(batch))
        plain.backward()
        cached = cached_backward(other, chunked(batch, size), loss_of(other_criterion))
    assert not cached.requires_grad
    tolerance = dict(rtol=2e-2, atol=1e-2) if autocast else dict(rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cached, plain, **tolerance)
    for got, expected in zip(gradients(other, other_criterion), gradients(model, criterion), strict=True):
        torch.testing.assert_close(got, expected, **tolerance)
        assert got.count_nonzero() > 0


def test_dropout_is_replayed_and_random_numbers_go_on_as_they_would():
    batch, model, criterion = (torch.randn(24, 6), torch.randn(24, 5)), Encoders(0.5), MPNCELoss()
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    parts = [model(chunk) for chunk in chunked(batch, 7)]
    loss_of(criterion)(*(torch.cat(part) for part in zip(*parts, strict=True))).backward()
    expected = torch.rand(3)
    torch.manual_seed(1)
    cached_backward(other, chunked(batch, 7), loss_of(criterion))
    assert torch.equal(torch.rand(3), expected)
    for got, wanted in zip(gradients(other), gradients(model), strict=True):
        torch.testing.assert_close(got, wanted)


def test_gradients_are_accumulated_and_frozen_encoders_left_alone():
    batch, model, criterion = (torch.randn(24, 6), torch.randn(24, 5)), Encoders(), MPNCELoss()
    model.text.requires_grad_(False)
    for _ in range(2):
        cached_backward(model, chunked(batch, 9), loss_of(criterion))
    once, twice = copy.deepcopy(model), model
    once.zero_grad()
    cached_backward(once, chunked(batch, 9), loss_of(criterion))
    torch.testing.assert_close(twice.image[0].weight.grad, 2 * once.image[0].weight.grad)
    assert model.text.weight.grad is None


def test_chunks_are_asked_for_once():
    images, labels = torch.randn(24, 6), torch.arange(24) // 3
    loader = DataLoader(TensorDataset(images, labels), batch_size=5, shuffle=True)
    model, found = nn.Linear(6, 4), []
    other = copy.deepcopy(model)
    sup_con(model(images), labels).backward()

    def encode(batch):
        if not torch.is_grad_enabled():
            found.append(batch[1])
        return other(batch[0])

    cached_backward(encode, loader, lambda z: sup_con(z, torch.cat(found)))
    torch.testing.assert_close(other.weight.grad, model.weight.grad)
    cached_backward(other, iter(images.split(5)), lambda z: sup_con(z, labels))
    torch.testing.assert_close(other.weight.grad, 2 * model.weight.grad)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((lambda x: (x, x.long()), [torch.ones(1, 2)], None), TypeError, "floating-point tensors, got torch.int64"),
        ((lambda x: x, [], torch.sum), ValueError, "chunks must hold at least one chunk"),
        ((lambda x: 1.0, [1], torch.sum), TypeError, "encode must return a tensor or a tuple of tensors, got float"),
        ((lambda x: (x,) * len(x), [torch.ones(1, 2), torch.ones(2, 2)], None), ValueError, "as many tensors"),
        (
            (lambda x: x, [torch.ones(2, 2)], lambda z: z),
            ValueError,
            r"loss_fn must return a scalar tensor, got torch.Size",
        ),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        cached_backward(*arguments)


def test_a_module_that_cannot_wait_is_an_error():
    with pytest.raises(TypeError, match="no_sync must hold modules in DistributedDataParallel or FSDP, got Linear"):
        cached_backward(lambda x: x, [torch.ones(2, 2)], torch.sum, no_sync=[nn.Linear(2, 2)])
