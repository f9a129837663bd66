"""`make gpu` without a GPU: it says so, and its dry run takes every step to the report and refuses wrong answers."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib")

from benchmarks import gpu, providers, ratios, run
from benchmarks.devices import CUDA
from benchmarks.dry_run import MARK, DryRun
from benchmarks.measure import CHECKED_SAMPLES, check_on_few
from benchmarks.problems import make_batch
from benchmarks.providers import ours
from benchmarks.rows import read_rows
from tests.test_benchmarks import not_a_number, planted, wrong_when_large


@pytest.mark.skipif(gpu.has_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_ends_at_once(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "take", lambda steps: pytest.fail("nothing may be done"))
    assert gpu.main([]) == 1
    assert "there is no GPU here" in capsys.readouterr().err


def test_a_dry_run_takes_every_step(tmp_path):
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"ARGS=--dry-run --python {sys.executable} --out {tmp_path}"]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("build: make", "test on the device: UNICLIP_GPU_DRY_RUN=1", "measure: TORCHDYNAMO_DISABLE=1"):
        assert f"=== {step}" in done.stdout
    assert " passed" in done.stdout
    assert "| eager PyTorch reference / ours, bf16, 65538 rows | — | ≥ 2.1 | — | not measured |" in done.stdout

    rows = read_rows(tmp_path / "dry-run.csv")
    assert {(row.device, row.machine) for row in rows} == {("dry-run", f"{MARK}, 1 GiB")}
    measured = {row.provider for row in rows if row.p50 is not None}
    assert {providers.OURS, providers.EAGER, providers.COMPILED, providers.FLOOR} <= measured
    assert {row.provider for row in rows} == {provider.name for provider in providers.PROVIDERS}
    assert {row.dtype for row in rows} == {"float32", "bfloat16"}
    assert MARK in (tmp_path / "dry-run.md").read_text()
    assert (tmp_path / "dry-run_mp_nce.png").exists()


@pytest.mark.parametrize("plant", [ours, not_a_number, wrong_when_large])
def test_a_wrong_answer_is_refused(tmp_path, capsys, monkeypatch, plant):
    n = CHECKED_SAMPLES + 1
    sides = ratios.Side(providers.EAGER), ratios.Side(providers.OURS)
    monkeypatch.setattr(ratios, "GPU_RATIOS", [ratios.Ratio("eager / ours", n, *sides, 0.1)])
    monkeypatch.setattr(ratios, "D", 8)
    tiny = ["--device", "dry-run", "--sizes", str(n), "--dim", "8", "--seconds", "0", "--out", str(tmp_path)]
    status = run.main(tiny, (planted(plant, providers.OURS), _provider(providers.EAGER)))
    printed, rows = capsys.readouterr(), read_rows(tmp_path / "dry-run.csv")
    (verdict,) = (line for line in printed.out.splitlines() if line.startswith("| eager / ours"))
    if plant is ours:
        assert (status, verdict) == (0, "| eager / ours | 1.00 (1 ms / 1 ms) | ≥ 0.1 | — | holds |")
        assert not any(row.note for row in rows)
    else:
        assert (status, verdict) == (1, "| eager / ours | — | ≥ 0.1 | — | REFUSED: a wrong answer was given |")
        assert "WRONG ANSWERS were refused" in printed.err
        assert all(r.refused and r.p50 is None for r in rows if (r.provider, r.objective) == (providers.OURS, "MP-NCE"))


def test_failed_tests_end_it_before_anything_is_measured(capsys, tmp_path):
    def step(title, code, **options):
        return gpu.Step(title, [sys.executable, "-c", code], **options)

    after = tmp_path / "after"
    todo = [
        step("do without", "raise SystemExit(3)", required=False),
        step("test on the device", "raise SystemExit(7)"),
        step("measure", f"open({str(after)!r}, 'w')"),
    ]
    assert gpu.take(todo) == 7
    assert "failed to test on the device; nothing after that was done" in capsys.readouterr().err
    assert not after.exists()


def test_the_steps_on_a_gpu():
    build, test, rivals, measure = gpu.steps("python", False, ["--sizes", "4096"])
    assert build.environment == {"UNICLIP_BUILD_CUDA": ""}
    assert test.command == ["python", "-m", "pytest", "-m", "gpu", "-rs"]
    assert [s.required for s in (build, test, rivals, measure)] == [True, True, False, True]
    options = measure.command[measure.command.index("benchmarks.run") + 1 :]
    assert options == ["--device", "cuda", "--sizes", "4096"]


def test_a_dry_run_never_writes_among_the_results(capsys):
    with pytest.raises(SystemExit):
        run.parse(["--device", "dry-run", "--out", str(run.RESULTS / "more")])
    assert "may not write among the results" in capsys.readouterr().err
    assert not run.parse(["--device", "dry-run"]).out.is_relative_to(run.RESULTS)


def test_a_dry_run_stands_in_for_all_that_is_used_of_torch_cuda():
    for name in vars(type(DryRun().runtime)):
        assert name.startswith("__") or hasattr(torch.cuda, name), name
    assert DryRun.timed is CUDA.timed
    assert DryRun.extra_memory is CUDA.extra_memory


def test_inf_cl_is_called_as_its_source_says(monkeypatch):
    """Its kernels need a GPU; here is what they compute: rows of -log softmax at the label."""

    def cal_flash_loss(q, k, labels=None, scale=None, head_dim=256):
        assert q.shape[1] % head_dim == 0
        target = torch.arange(len(q)) if labels is None else labels
        return F.cross_entropy((scale * q).float() @ k.float().T, target, reduction="none")

    monkeypatch.setitem(sys.modules, "inf_cl", SimpleNamespace(cal_flash_loss=cal_flash_loss))
    check_on_few(_provider(providers.INF_CL), "InfoNCE", 40, 48, torch.bfloat16, "cpu")


def test_siglip_kernel_is_called_as_its_source_says(monkeypatch):
    """Likewise: sums of -log sigmoid over pairs, by N."""

    def fused_siglip_loss(image, text, log_temperature, bias):
        s = (image @ text.T).float() * log_temperature.exp() + bias
        return -F.logsigmoid((2 * torch.eye(len(s)) - 1) * s).sum() / len(s)

    monkeypatch.setitem(sys.modules, "siglip_kernel", SimpleNamespace(fused_siglip_loss=fused_siglip_loss))
    check_on_few(_provider(providers.SIGLIP), "InfoNCE", 40, 48, torch.bfloat16, "cpu")


def test_the_objective_of_siglip_is_another():
    batch = make_batch("InfoNCE", 20, 16, torch.float32)
    ours, siglip = (_provider(name).expected(batch)[0] for name in (providers.OURS, providers.SIGLIP))
    assert abs(ours - siglip) > 0.1
    modes = {p.mode for p in providers.PROVIDERS if p.name in (providers.OURS, providers.SIGLIP)}
    assert len(modes) == 2, "at large sizes each mode is held against its own first result"


def _provider(name: str) -> providers.Provider:
    return next(p for p in providers.PROVIDERS if p.name == name)
