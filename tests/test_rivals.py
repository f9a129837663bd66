"""Other packages are called as their sources say: stand-ins compute what they do, since most need a GPU."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from benchmarks import providers
from benchmarks.measure import check_on_few
from benchmarks.problems import make_batch
from benchmarks.providers import packages
from tests.test_benchmarks import provider_named


def test_inf_cl_is_called_as_its_source_says(monkeypatch):
    """Its kernels need a GPU; here is what they compute: rows of -log softmax at the label."""

    def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
        assert q.shape[1] % head_dim == 0
        target = torch.arange(len(q)) if labels is None else labels
        return F.cross_entropy((scale * q).float() @ k.float().T, target, reduction="none")

    monkeypatch.setitem(sys.modules, "inf_cl", SimpleNamespace(cal_flash_loss=cal_flash_loss))
    check_on_few(provider_named(providers.INF_CL), "InfoNCE", 40, 48, torch.bfloat16, "cpu")


def test_memeff_is_called_as_its_source_says(monkeypatch):
    """Likewise: CLIP's loss, whose gradient is off by a factor if it is `stable`."""

    def loss_of(temperature, normalized_inputs=False, stable=True):
        assert isinstance(temperature, float)

        def loss(image, text):
            if not normalized_inputs:
                image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
            s = (image @ text.T).float() / temperature
            if stable:
                s = s + (s - s.detach()) * 9
            target = torch.arange(len(s))
            return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2

        return loss

    monkeypatch.setitem(sys.modules, "memeff", SimpleNamespace(MemoryEfficientCLIPLoss=loss_of))
    check_on_few(provider_named(providers.MEMEFF), "InfoNCE", 40, 48, torch.bfloat16, "cpu")


def test_siglip_kernel_is_called_as_its_source_says(monkeypatch):
    """Likewise: sums of -log sigmoid over pairs, by N."""

    def fused_siglip_loss(image, text, log_temperature, bias):
        s = (image @ text.T).float() * log_temperature.exp() + bias
        return -F.logsigmoid((2 * torch.eye(len(s)) - 1) * s).sum() / len(s)

    monkeypatch.setitem(sys.modules, "siglip_kernel", SimpleNamespace(fused_siglip_loss=fused_siglip_loss))
    check_on_few(provider_named(providers.SIGLIP), "InfoNCE", 40, 48, torch.bfloat16, "cpu")


def test_open_clip_is_read_without_what_the_package_imports(monkeypatch, tmp_path):
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("import something_that_is_not_there")
    (package / "loss.py").write_text("import torch\nclass ClipLoss(torch.nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    assert packages.open_clip_losses.__wrapped__().ClipLoss.__name__ == "ClipLoss"


def test_the_objective_of_siglip_is_another():
    batch = make_batch("InfoNCE", 20, 16, torch.float32)
    ours, siglip = (provider_named(name).expected(batch)[0] for name in (providers.OURS, providers.SIGLIP))
    assert abs(ours - siglip) > 0.1
    modes = {p.mode for p in providers.PROVIDERS if p.name in (providers.OURS, providers.SIGLIP)}
    assert len(modes) == 2, "at large sizes each mode is held against its own first result"
