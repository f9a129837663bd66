"""The code in docs/trainers.md runs as it stands, with the trainers of other packages."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch import nn

import uniclip_kernels

ROOT = Path(__file__).parents[1]
SNIPPETS = dict(re.findall(r"## ([^\n]+)\n\n```python\n(.*?)```", (ROOT / "docs/trainers.md").read_text(), re.DOTALL))


def run(title: str, **names) -> dict:
    names |= vars(uniclip_kernels) | {"torch": torch}
    exec(SNIPPETS[title], names)
    return names


def test_open_clip():
    factory = pytest.importorskip("open_clip.factory", reason="in the extra `test`")
    from open_clip_train.params import parse_args

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.text, self.scale = nn.Linear(6, 4), nn.Linear(5, 4), nn.Parameter(torch.tensor(2.0))

        def forward(self, images, texts):
            found = {"image_features": self.image(images), "text_features": self.text(texts)}
            return {k: nn.functional.normalize(z, dim=1) for k, z in found.items()} | {"logit_scale": self.scale.exp()}

    arguments, model = parse_args([]), Model()
    arguments.distill, arguments.rank, arguments.world_size = False, 0, 1
    with mock.patch.multiple(factory, ClipLoss=None, SigLipLoss=None):
        names = run("open_clip", model=model, images=torch.randn(8, 6), texts=torch.randn(8, 5), arguments=arguments)
    assert type(names["loss"]).__module__ == "uniclip_kernels.integrations.open_clip"
    assert all(p.grad.count_nonzero() > 0 for p in model.parameters())


def test_pytorch_metric_learning():
    pytest.importorskip("pytorch_metric_learning", reason="in the extra `test`")
    model = nn.Linear(6, 4)
    names = run("pytorch-metric-learning", model=model, images=torch.randn(9, 6), labels=torch.arange(9) % 3, D=4)
    assert type(names["criterion"].loss).__module__ == "uniclip_kernels.integrations.pytorch_metric_learning"
    assert model.weight.grad.count_nonzero() > 0


def test_sentence_transformers(tmp_path):
    pytest.importorskip("sentence_transformers", reason="in the extra `test`")
    datasets = pytest.importorskip("datasets", reason="in the extra `test`")
    from sentence_transformers import SentenceTransformerTrainingArguments

    from tests.test_sentence_transformers import make_model, make_texts

    model, pairs = make_model(), dict(zip(["query", "document"], make_texts(2, 16), strict=True))
    before = [p.clone() for p in model.parameters()]
    arguments = SentenceTransformerTrainingArguments(tmp_path, use_cpu=True, report_to="none", save_strategy="no")
    names = run("sentence-transformers", model=model, pairs=datasets.Dataset.from_dict(pairs), arguments=arguments)
    assert names["trainer"].state.global_step == 6
    assert all((p != q).any() for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_hugging_face(tmp_path, accumulation):
    """Two batches of one half each, accumulated, give the mean of their gradients: half a step of SGD each."""
    transformers = pytest.importorskip("transformers", reason="in the extra `test`")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = nn.Linear(6, 4)

        def forward(self, images):
            return {"embeddings": self.tower(images)}

    model = Model()
    arguments = transformers.TrainingArguments(
        tmp_path,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        max_steps=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        train_sampling_strategy="sequential",
    )
    rows, labels = torch.randn(16, 6), torch.arange(16) % 3
    labelled = [{"images": row, "label": label} for row, label in zip(rows, labels, strict=True)]
    before = model.tower.weight.detach().clone()
    halves = list(zip(rows.split(8), labels.split(8), strict=True))[:accumulation]
    losses = [uniclip_kernels.sup_con(model.tower(x), y, temperature=0.07) for x, y in halves]
    gradient = torch.autograd.grad(sum(losses) / len(losses), model.tower.weight)[0]
    run("Hugging Face Trainer", model=model, labelled=labelled, arguments=arguments)
    torch.testing.assert_close(model.tower.weight.detach(), before - 0.1 * gradient)
    assert model.criterion.log_temperature.item() != uniclip_kernels.SupConLoss(num_domains=1).log_temperature.item()


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="in the extra `test`")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    image_tower, text_tower = nn.Linear(6, 4), nn.Linear(5, 4)
    pairs = torch.utils.data.TensorDataset(torch.randn(24, 6), torch.randn(24, 5))
    loader = torch.utils.data.DataLoader(pairs, batch_size=8)
    run("Lightning", trainer=trainer, image_tower=image_tower, text_tower=text_tower, loader=loader)
    assert trainer.global_step == 6
    assert trainer.model.criterion.log_temperature.grad.count_nonzero() == 3


def test_there_are_no_other_snippets():
    assert len(SNIPPETS) == 5 == (ROOT / "docs/trainers.md").read_text().count("```python")


def test_the_package_needs_none_of_them():
    code = """
import sys, uniclip_kernels, uniclip_kernels.integrations, uniclip_kernels.integrations.open_clip
print(*{"open_clip", "pytorch_metric_learning", "sentence_transformers", "transformers", "lightning"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
