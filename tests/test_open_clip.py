"""open_clip's losses and ours: the same numbers, alone and in open_clip's own trainer, on one rank and on two."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from tests.ranks import ranks
from uniclip_kernels.integrations import open_clip as ours

open_clip = pytest.importorskip("open_clip", reason="in the extra `test`")
theirs = open_clip.loss
pytest.importorskip("pandas", reason="in the extra `test`: the trainer of open_clip reads its data with it")

OBJECTIVES = ["ClipLoss", "SigLipLoss"]


def features(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).requires_grad_()


def assert_agree(found: torch.Tensor, expected: torch.Tensor, *leaves: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for pair in zip(*(torch.autograd.grad(loss, leaves) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("bias", [None, -10.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_is_the_loss_of_open_clip(name, bias, shape):
    image, text = features(30, 8), features(30, 8)
    scale = torch.full(shape, 7.0, dtype=torch.float64, requires_grad=True)
    leaves = [image, text, scale]
    if bias is not None:
        bias = torch.full(shape, bias, dtype=torch.float64, requires_grad=True)
        leaves.append(bias)
    found, expected = (
        getattr(package, name)()(image, text, scale, logit_bias=bias, output_dict=True) for package in (ours, theirs)
    )
    assert found.keys() == expected.keys() == {"contrastive_loss"}
    assert_agree(found["contrastive_loss"], expected["contrastive_loss"], *leaves)
    assert torch.equal(getattr(ours, name)()(image, text, scale, bias), found["contrastive_loss"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_numbers_and_narrow_scales(name):
    """A scale in the dtype of the features is not rounded a second time by taking its inverse."""
    image, text = features(30, 8), features(30, 8)
    expected = getattr(theirs, name)()(image, text, 7.3, -9.1)
    torch.testing.assert_close(getattr(ours, name)()(image, text, 7.3, -9.1), expected, rtol=1e-10, atol=0)
    narrow = image.bfloat16(), text.bfloat16(), torch.tensor(7.3).bfloat16(), torch.tensor(-9.1).bfloat16()
    exact = getattr(theirs, name)()(*(x.double() for x in narrow))
    found = getattr(ours, name)()(*narrow)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_views_and_texts_are_positives_each_against_other_samples():
    image, view, text, scale = features(10, 8), features(10, 8), features(10, 8), 7.0
    found = ours.ClipLoss()(image, text, scale, more_image_features=[view])
    z, eye = scale * torch.stack([image, view]) @ text.T, torch.eye(10, dtype=torch.bool)
    of_images = -torch.diagonal(z.log_softmax(2), dim1=1, dim2=2)
    others = (
        z.masked_fill(eye, -torch.inf).transpose(1, 2).logsumexp((0, 2))
    )  # of a text over all views of other samples
    of_texts = F.softplus(others - torch.diagonal(z, dim1=1, dim2=2)).mean(0)
    assert_agree(found, torch.cat([of_images.flatten(), of_texts]).mean(), image, view, text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.ClipLoss(use_horovod=True), "use_horovod must be False"),
        (lambda: ours.SigLipLoss(dist_impl="tree"), "dist_impl must be one of None, 'gather'.*, got 'tree'"),
        (lambda: ours.ClipLoss(world_size=2)(features(4, 2), features(4, 2), 1.0), "got 2 with no process group"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures of noise, each with a caption of its own, and the configuration of a tiny model."""
    import numpy as np
    from PIL import Image

    folder, random = tmp_path_factory.mktemp("open_clip"), np.random.default_rng(0)
    with open(folder / "train.csv", "w") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["filepath", "title"])
        for i in range(48):
            Image.fromarray(random.integers(256, size=(4, 4, 3), dtype=np.uint8)).resize((40, 40)).save(
                folder / f"{i}.png"
            )
            table.writerow([folder / f"{i}.png", f"number {i}"])
    (folder / "tiny-test.json").write_text(json.dumps(MODEL))
    return folder


def train(folder: Path, name: str, package, arguments: list[str]) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of six steps of open_clip's trainer on 48 samples, and the weights after them, on rank 0."""
    import open_clip_train.main as trainer

    losses = []

    class Recorded:
        def forward(self, *args, **kwargs):
            found = super().forward(*args, **kwargs)
            losses.append(found["contrastive_loss"].item())
            return found

    recorded = {n: type(n, (Recorded, getattr(package, n)), {}) for n in OBJECTIVES}
    size = int(os.environ.get("WORLD_SIZE", 1))
    open_clip.add_model_config(folder / "tiny-test.json")
    options = f"""--model tiny-test --precision fp32 --device cpu --workers 0 --batch-size {8 // size} --epochs 1
        --lr 1e-2 --eps 1e-3 --warmup 1 --train-data {folder}/train.csv --dataset-type csv --logs {folder} --name {name}"""
    with mock.patch.multiple(open_clip.factory, **recorded), mock.patch.object(trainer, "setup_logging"):
        trainer.main([*options.split(), *arguments])
    checkpoint = folder / name / "checkpoints" / "epoch_1.pt"
    return losses, torch.load(checkpoint)["state_dict"] if os.environ.get("RANK", "0") == "0" else {}


def train_on_rank(folder: Path, name: str, package_name: str, arguments: list[str]):
    """In a group that there already is, and with DistributedDataParallel told of no device: it knows none of the CPU."""
    rank, size = (str(f()) for f in (torch.distributed.get_rank, torch.distributed.get_world_size))
    parallel = torch.nn.parallel.DistributedDataParallel
    with (
        mock.patch.dict(os.environ, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size),
        mock.patch("torch.distributed.init_process_group"),
        mock.patch("torch.nn.parallel.DistributedDataParallel", lambda model, device_ids: parallel(model)),
    ):
        return train(folder, name, {"ours": ours, "theirs": theirs}[package_name], arguments)


def assert_trained_alike(losses, weights, their_losses, their_weights):
    assert len(losses) == 6
    assert max(losses) - min(losses) > 0.01
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(their_losses), rtol=1e-5, atol=0)
    assert weights.keys() == their_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, their_weights[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [[], ["--siglip"]], ids=OBJECTIVES)
def test_in_the_trainer(data, arguments):
    found, expected = (
        train(data, f"{name}{'-'.join(arguments)}", package, arguments)
        for name, package in {"ours": ours, "theirs": theirs}.items()
    )
    assert_trained_alike(*found, *expected)


def test_in_the_trainer_on_two_ranks(data):
    """open_clip's gradients are those of one process with `--gather-with-grad` alone; ours whatever the flags say."""
    with ranks(2) as run:
        for flags, their_flags in {("--local-loss",): ("--gather-with-grad",), ("--siglip",): ("--siglip",)}.items():
            (losses, weights), (others, _) = run(train_on_rank, data, "ours-2" + "".join(flags), "ours", flags)
            (a, their_weights), (b, _) = run(train_on_rank, data, "theirs-2" + "".join(flags), "theirs", their_flags)
            assert losses == others
            their_losses = [(x + y) / 2 for x, y in zip(a, b, strict=True)]  # of SigLIP, each rank has a share
            assert_trained_alike(losses, weights, their_losses, their_weights)
