"""The tasks of `make gpu`: results one by one, crashes, the end of the time, and wrong results, which give no figures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import providers, ratios, run
from benchmarks.devices import CUDA
from benchmarks.dry_run import DryRun
from benchmarks.gpu import end_to_end, environment, product, session
from benchmarks.gpu import task as tasks
from benchmarks.gpu.report import Report
from benchmarks.gpu.task import Check, Context, Failure, Note, Task, results
from benchmarks.measure import CHECKED_SAMPLES, WrongAnswerError
from benchmarks.providers import ours
from benchmarks.rows import read_rows
from benchmarks.session import OurError
from tests.test_benchmarks import not_a_number, planted, provider_named, wrong_when_large


@pytest.fixture
def context(tmp_path) -> Context:
    return Context(DryRun(), True, "now", tmp_path)


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
    status = run.main(tiny, (planted(plant, providers.OURS), provider_named(providers.EAGER)))
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


def test_a_task_that_hangs_leaves_time_for_the_others(context, monkeypatch):
    monkeypatch.setattr(tasks, "SHORTEST_LIMIT", 0.5)
    context.deadline = time.time() + 600

    def hangs(context):
        yield Check("grid", "float32", 1, 0, ())
        time.sleep(60)

    report = Report(context.out)
    session.do(task(hangs, backend="triton"), context, report)
    assert context.seconds_left() > 500
    assert "triton" in context.unusable
    assert report.failures
    assert "did not end within" in report.failures[0]
