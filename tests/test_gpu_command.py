"""`make gpu` without a GPU: it says so, and its dry run takes every step to the report and refuses wrong answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("matplotlib")

from benchmarks import providers, ratios, run
from benchmarks.devices import CUDA
from benchmarks.dry_run import MARK, DryRun
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import end_to_end, environment, product, session
from benchmarks.gpu.report import Report
from benchmarks.gpu.task import Check, Context, Failure, Note, Task, results
from benchmarks.measure import CHECKED_SAMPLES, WrongAnswerError, check_on_few
from benchmarks.problems import make_batch
from benchmarks.providers import ours
from benchmarks.rows import read_rows
from benchmarks.session import OurError
from tests.test_benchmarks import not_a_number, planted, wrong_when_large

# An environment as a machine with a GPU has it, with the extensions built for it in place (`make test-torch` sets this):
# torch 2.11.0 with its Triton, numpy, setuptools, wheel, pybind11, ninja, pytest, pytest-xdist, tqdm and matplotlib.
ANOTHER_PYTHON = os.environ.get("UNICLIP_TEST_PYTHON")
another = pytest.mark.skipif(ANOTHER_PYTHON is None, reason="UNICLIP_TEST_PYTHON names no other environment")
WITHOUT_NETWORK = ["unshare", "--map-root-user", "--net"]


def make_gpu(arguments: str, python: str = sys.executable, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    command = [*prefix, "make", "gpu", f"PYTHON={python}", f"ARGS={arguments}"]
    return subprocess.run(command, cwd=environment.ROOT, capture_output=True, text=True, timeout=600)


@pytest.fixture
def without_network() -> tuple[str, ...]:
    try:
        subprocess.run([*WITHOUT_NETWORK, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no namespace without network can be made here: {error}")
    return tuple(WITHOUT_NETWORK)


@pytest.fixture
def context(tmp_path) -> Context:
    return Context(DryRun(), True, "now", tmp_path)


@pytest.mark.skipif(environment.has_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [[], ["--existing"]])
def test_without_a_gpu_it_ends_at_once(monkeypatch, capsys, arguments):
    monkeypatch.setattr(environment, "take", lambda steps: pytest.fail("nothing may be done"))
    monkeypatch.setattr(gpu, "_logged", lambda *_: pytest.fail("nothing may be done"))
    assert gpu.main(arguments) == 1
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "python", [sys.executable, pytest.param(ANOTHER_PYTHON, marks=another)], ids=["own", "another"]
)
def test_an_existing_environment_without_network(tmp_path, without_network, python):
    """A pass of everything in a dry run; the real thing lacks a GPU and nothing else."""
    done = make_gpu(f"--existing --dry-run --minutes 9 --out {tmp_path}", python, without_network)
    assert done.returncode == 0, done.stdout + done.stderr
    report = (tmp_path / "gpu.md").read_text()
    assert "Failed" not in report
    assert "Not reached" not in report
    assert "| pytest -m gpu |" in report
    rows = read_rows(tmp_path / "gpu.csv")
    assert {row.part.split(",")[0] for row in rows} == {"ceilings", "end_to_end", "product", "kernels"}
    assert {(row.device, row.machine) for row in rows} == {("dry-run", f"{MARK}, 1 GiB")}
    wanted = {p.name for p in (*providers.PROVIDERS, *providers.REPLAYED)}
    assert wanted <= {row.provider for row in rows}
    measured = {row.provider for row in rows if row.p50 is not None}
    assert {providers.OURS, providers.EAGER, providers.TUNED_COMPILED, providers.FLOOR} <= measured
    assert "[0:" in done.stdout or "[8:" in done.stdout
    assert (tmp_path / "gpu.log").read_text() in done.stdout
    assert MARK in (tmp_path / "dry-run.md").read_text()
    assert (tmp_path / "dry-run_mp_nce.png").exists()

    if not environment.has_gpu():
        done = make_gpu(f"--existing --out {tmp_path}", python, without_network)
        assert done.returncode != 0
        assert "there is no GPU here" in done.stderr


def test_an_environment_of_its_own(tmp_path):
    done = make_gpu(f"--dry-run --only checks,ceilings --python {sys.executable} --out {tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "=== build: make --assume-new=setup.py install --dry-run" in done.stdout
    assert "| cpu backend, grid | bfloat16 |" in (tmp_path / "gpu.md").read_text()
    assert {row.part for row in read_rows(tmp_path / "gpu.csv")} == {"ceilings"}


def test_it_starts_with_python_alone():
    program = f"import sys; sys.path.insert(0, {str(environment.ROOT)!r}); import benchmarks.gpu.__main__"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


def test_the_installation():
    build, rivals = environment.installation("python", dry_run=False)
    assert build.environment == {"UNICLIP_BUILD_CUDA": ""}
    assert rivals.command[:5] == ["python", "-m", "pip", "install", "--quiet"]
    assert (build.required, rivals.required) == (True, False)


def test_a_failed_installation_ends_it(capsys, tmp_path):
    def step(title, code, **options):
        return environment.Step(title, [sys.executable, "-c", code], **options)

    after = tmp_path / "after"
    todo = [
        step("do without", "raise SystemExit(3)", required=False),
        step("build", "raise SystemExit(7)"),
        step("measure", f"open({str(after)!r}, 'w')"),
    ]
    assert environment.take(todo) == 7
    assert "failed to build; nothing after that was done" in capsys.readouterr().err
    assert not after.exists()


def test_wheels_are_unpacked(tmp_path):
    for name in ("pure-1-py3-none-any.whl", "compiled-1-cp312-cp312-linux_x86_64.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"{name.split('-')[0]}/__init__.py", "")
    assert environment.unpack(tmp_path, tmp_path / "out") == ["pure-1-py3-none-any.whl"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pure"]


def test_the_options(capsys, tmp_path):
    options, others = gpu.parse(["--only", "kernels,checks", "--sizes", "4096"])
    assert options.only == ("checks", "kernels")
    assert options.out == gpu.RESULTS
    assert others == ["--sizes", "4096"]
    assert set(gpu.PARTS) == set(session.PARTS)
    with pytest.raises(SystemExit):
        gpu.parse(["--only", "checks,everything"])
    assert "there is no part everything" in capsys.readouterr().err


@pytest.mark.parametrize("parse", [gpu.parse, run.parse])
def test_a_dry_run_never_writes_among_the_results(capsys, parse):
    dry = ["--dry-run"] if parse is gpu.parse else ["--device", "dry-run"]
    with pytest.raises(SystemExit):
        parse([*dry, "--out", str(run.RESULTS / "more")])
    assert "may not write among the results" in capsys.readouterr().err
    parsed = parse(dry)
    options = parsed[0] if parse is gpu.parse else parsed
    assert not options.out.is_relative_to(run.RESULTS)


def task(function, **options) -> Task:
    return Task("part", "title", function, 0, needs_build=False, **options)


def one_row_then(action):
    def function(context):
        yield Note("before")
        action()
        yield Note("after")

    return function


def test_results_come_one_by_one(context):
    assert list(results(task(one_row_then(lambda: None)), context)) == [Note("before"), Note("after")]


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process ended with status -9"),
        (lambda: os._exit(3), "its process ended with status 3"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
    ids=["crash", "exit", "error"],
)
def test_a_crash_is_a_result(context, capfd, action, text):
    assert list(results(task(one_row_then(action)), context)) == [Note("before"), Failure(text)]


def test_the_end_of_the_time_ends_a_task_and_what_it_started(context, tmp_path):
    child = tmp_path / "child"

    def starts_another():
        child.write_text(str(subprocess.Popen(["sleep", "60"]).pid))
        time.sleep(60)

    context.deadline = time.time() + 2
    found = results(task(one_row_then(starts_another)), context)
    assert next(found) == Note("before")
    with pytest.raises(TimeoutError):
        next(found)
    assert time.time() < context.deadline + 5
    state = Path("/proc", child.read_text(), "stat")
    assert not state.exists() or ") Z " in state.read_text()


def test_what_was_not_reached_is_listed(context, monkeypatch, tmp_path):
    def slow(context):
        yield Check("first", "float32", 1)
        time.sleep(60)

    tasks = [Task("checks", "slow", slow, 0, False), Task("checks", "never", slow, 30, False)]
    monkeypatch.setitem(session.PARTS, "checks", lambda context: tasks)
    arguments = ["--parts", "checks", "--dry-run", "--out", str(tmp_path), "--deadline", str(time.time() + 3)]
    assert session.main(arguments) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "| first | float32 | 1 | 0 | 0 |" in text
    assert text.endswith("that there was\n\n* checks: slow\n* checks: never\n")


def test_what_needs_no_build_is_done_meanwhile(context, monkeypatch, tmp_path):
    """And a failed build is told, though what it was for is tried."""
    order = tmp_path / "order"

    def writes(name):
        def function(context):
            with order.open("a") as file:
                file.write(f"{name} {(tmp_path / 'built').exists()}\n")
            yield Note(name)

        return function

    code = f"import time; time.sleep(2); open({str(tmp_path / 'built')!r}, 'w'); raise SystemExit(3)"
    step = environment.Step("build", [sys.executable, "-c", code])
    monkeypatch.setattr(session, "build_in_place", lambda: step)
    tasks = [Task("checks", name, writes(name), 0, needs) for name, needs in (("waits", True), ("does not", False))]
    monkeypatch.setitem(session.PARTS, "checks", lambda context: tasks)
    monkeypatch.setattr(session, "CUDA", lambda: context.device)
    assert session.main(["--parts", "checks", "--build", "--out", str(tmp_path)]) == 1
    assert order.read_text() == "does not False\nwaits True\n"
    assert "build: it ended with status 3" in (tmp_path / "gpu.md").read_text()


def test_a_failing_check_stops_the_figures_of_its_backend_alone(context):
    def wrong(context):
        yield Check("grid", "float32", 1, 0, ("a case: off",))

    report = Report(context.out)
    session.do(task(wrong, backend="triton"), context, report)
    assert report.failed
    assert list(context.unusable) == ["triton"]
    rows = list(end_to_end.tasks(context)[0].run(context))
    notes = {row.provider: row.note for row in rows if row.p50 is None}
    assert notes == {providers.OURS: "its checks failed on this device"}
    assert {providers.OURS_IN_CUDA, providers.TUNED} <= {row.provider for row in rows if row.p50 is not None}


def test_a_backend_that_cannot_run_is_left_out(context):
    def unusable(context):
        yield Note("the backend was left out: there is no Triton")

    report = Report(context.out)
    session.do(task(unusable, backend="triton"), context, report)
    assert not report.failed
    assert context.unusable == {"triton": "the backend was left out: there is no Triton"}


def test_a_crash_of_ours_among_figures_is_tried_again_without(context, capfd):
    def figures(context):
        if "ours" not in context.unusable:
            raise OurError("its own fault", "ours")
        yield Note("the others")

    report = Report(context.out)
    session.do(task(figures), context, report)
    assert report.failures == ["part: title: OurError: its own fault"]
    assert report.notes == ["part: title: the others"]
    assert not context.unusable, "elsewhere it may do"


def test_a_wrong_product_is_not_timed(context, monkeypatch):
    right = product._accumulate
    monkeypatch.setattr(product, "_accumulate", lambda out, a, b: right(out, a, b)[0].mul_(1.001))
    with pytest.raises(WrongAnswerError, match="addmm of"):
        list(product.tasks(context)[0].run(context))


def test_a_wrong_kernel_is_not_timed():
    """A block of more columns than a row has adds the next row's to it; one of 48 does not compile."""
    program = """
from benchmarks.dry_run import DryRun
from benchmarks.gpu import kernels
from benchmarks.gpu.task import Context
from uniclip_kernels.triton import tuning

right = tuning.configurations
tuning.configurations = lambda *args: [right(*args)[0] | {"BLOCK_D": columns} for columns in (16, 48, 128)]
for row in kernels.tasks(context := Context(DryRun(), True, "now", None))[0].run(context):
    print(row.objective, row.provider.split(",")[0].split()[-1], row.p50, row.note.split(":")[0])
"""
    environ = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=environment.ROOT, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for kernel in ("similarity_lse_kernel", "similarity_grad_kernel"):
        lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith(kernel)]
        assert sorted(lines) == [
            ["BLOCK_D=128", "None", "refused"],
            ["BLOCK_D=16", "0.001"],
            ["BLOCK_D=48", "None", "failed"],
        ]


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
    check_on_few(_provider(providers.MEMEFF), "InfoNCE", 40, 48, torch.bfloat16, "cpu")


def test_siglip_kernel_is_called_as_its_source_says(monkeypatch):
    """Likewise: sums of -log sigmoid over pairs, by N."""

    def fused_siglip_loss(image, text, log_temperature, bias):
        s = (image @ text.T).float() * log_temperature.exp() + bias
        return -F.logsigmoid((2 * torch.eye(len(s)) - 1) * s).sum() / len(s)

    monkeypatch.setitem(sys.modules, "siglip_kernel", SimpleNamespace(fused_siglip_loss=fused_siglip_loss))
    check_on_few(_provider(providers.SIGLIP), "InfoNCE", 40, 48, torch.bfloat16, "cpu")


def test_open_clip_is_read_without_what_the_package_imports(monkeypatch, tmp_path):
    package = tmp_path / "open_clip"
    package.mkdir()
    (package / "__init__.py").write_text("import something_that_is_not_there")
    (package / "loss.py").write_text("import torch\nclass ClipLoss(torch.nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    assert providers._clip_loss_class.__wrapped__().__name__ == "ClipLoss"


def test_the_objective_of_siglip_is_another():
    batch = make_batch("InfoNCE", 20, 16, torch.float32)
    ours, siglip = (_provider(name).expected(batch)[0] for name in (providers.OURS, providers.SIGLIP))
    assert abs(ours - siglip) > 0.1
    modes = {p.mode for p in providers.PROVIDERS if p.name in (providers.OURS, providers.SIGLIP)}
    assert len(modes) == 2, "at large sizes each mode is held against its own first result"


def _provider(name: str) -> providers.Provider:
    return next(p for p in providers.PROVIDERS if p.name == name)
