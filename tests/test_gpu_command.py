"""`make gpu` without a GPU: it says so, and its dry run takes every step to the report, without network too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip("matplotlib")

from benchmarks import providers, run
from benchmarks.dry_run import MARK
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import environment, session
from benchmarks.rows import read_rows

# An environment as a machine with a GPU has it, with the extensions built for it in place (`make test-torch` sets this):
# torch 2.11.0 with its Triton, numpy, setuptools, wheel, pybind11, ninja, pytest, pytest-xdist, tqdm and matplotlib.
ANOTHER_PYTHON = os.environ.get("UNICLIP_TEST_PYTHON")
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


@pytest.mark.skipif(environment.has_gpu(), reason="there is a GPU")
@pytest.mark.parametrize("arguments", [[], ["--existing"]])
def test_without_a_gpu_it_ends_at_once(monkeypatch, capsys, arguments):
    monkeypatch.setattr(environment, "take", lambda steps: pytest.fail("nothing may be done"))
    monkeypatch.setattr(gpu, "_logged", lambda *_: pytest.fail("nothing may be done"))
    assert gpu.main(arguments) == 1
    assert "there is no GPU here" in capsys.readouterr().err


@pytest.mark.skipif(ANOTHER_PYTHON is None, reason="UNICLIP_TEST_PYTHON names no other environment")
@pytest.mark.parametrize("python", [sys.executable, ANOTHER_PYTHON], ids=["own", "another"])
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
    assert re.search(r"\[[0-8]:\d\d left\]", done.stdout)
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
