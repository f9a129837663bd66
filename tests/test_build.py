"""The package as its users get it: sdist, wheel and installation, and what the build says when something is missing."""

import importlib.util
import os
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.test_stable_abi import extension
from tests.wheels import ROOT, build, copy_sources, copy_tests, install, run

INSTALL_CUDA = r"pip install 'cuda-toolkit\[nvcc,cccl\]==13.0.\*'"

pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="there is nothing to build beside an installed wheel"
)


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module, in a world without compilers and with a torch of CUDA 13.0."""
    spec = importlib.util.spec_from_file_location("uniclip_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("CXX", "CUDA_HOME", "UNICLIP_BUILD_CUDA"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return module


def program(folder: Path, name: str, script: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def nvcc(home: Path, release: str, otherwise: str = "exit 0") -> str:
    version = f'case "$*" in --version) echo "Cuda compilation tools, release {release}, V{release}.1"; exit 0;; esac'
    return program(home / "bin", "nvcc", f"{version}\n{otherwise}")


def test_the_switch_is_0_or_1(setup, monkeypatch):
    monkeypatch.setenv("UNICLIP_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match="UNICLIP_BUILD_CUDA must be 0 or 1, got 'yes'"):
        setup.build()


def test_without_a_compiler_the_package_is_python_alone(setup, monkeypatch, capsys):
    assert setup.build() == {}
    message = "no C++ compiler is found; install one, such as GCC 12, or set CXX"
    assert message in capsys.readouterr().err
    monkeypatch.setenv("UNICLIP_BUILD_CUDA", "1")
    with pytest.raises(SystemExit) as error:
        setup.build()
    assert message in str(error.value)


def test_a_compiler_that_does_not_fit_is_named(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="CXX is 'no-such-compiler', and there is no such program"):
        setup.build()
    old = program(tmp_path, "old-c++", "echo \"c++: error: unrecognized option '-std=c++20'\" >&2; exit 1")
    monkeypatch.setenv("CXX", old)
    with pytest.raises(
        SystemExit, match=r"old-c\+\+ does not compile C\+\+20 \(c\+\+: error: unrecognized option .*GCC 12"
    ):
        setup.build()


def test_without_a_cuda_compiler(setup, monkeypatch, capsys):
    assert setup.find_cuda("c++") is None
    assert "the `cuda` backend is left out: torch" in capsys.readouterr().err
    monkeypatch.setenv("UNICLIP_BUILD_CUDA", "1")
    with pytest.raises(
        SystemExit, match=f"needs an nvcc of CUDA 13, and there is none; set CUDA_HOME, or {INSTALL_CUDA}"
    ):
        setup.find_cuda("c++")
    monkeypatch.setenv("UNICLIP_BUILD_CUDA", "0")
    monkeypatch.setattr(setup, "CUDAToolkit", None)  # isn't even looked for
    assert setup.find_cuda("c++") is None


def test_the_wrong_cuda(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("UNICLIP_BUILD_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc(tmp_path, "12.4")
    with pytest.raises(SystemExit, match=f"needs an nvcc of CUDA 13, and .*nvcc is of CUDA 12.4; .*{INSTALL_CUDA}"):
        setup.find_cuda("c++")


def test_a_cuda_compiler_that_fails(setup, monkeypatch, tmp_path):
    monkeypatch.setenv("UNICLIP_BUILD_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    nvcc(tmp_path, "13.0", "echo 'sh: cicc: not found' >&2; exit 1")
    with pytest.raises(SystemExit, match=rf"does not compile a kernel \(sh: cicc: not found\); .*{INSTALL_CUDA}"):
        setup.find_cuda("c++")
    nvcc(tmp_path, "13.0")
    with pytest.raises(SystemExit, match=f"there is no libcudart.so.13 beside .*{INSTALL_CUDA}"):
        setup.find_cuda("c++")


def test_the_cuda_compiler_that_fits_is_taken(setup, monkeypatch, tmp_path):
    nvcc(tmp_path / "old", "12.4")
    fitting = nvcc(tmp_path / "new", "13.2")
    library = tmp_path / "new" / "lib64" / "libcudart.so.13"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("PATH", str(tmp_path / "new" / "bin"))
    toolkit = setup.find_cuda("c++")
    assert (toolkit.nvcc, toolkit.version, toolkit.runtime) == (fitting, "13.2", str(library))


def test_a_torch_without_cuda(setup, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("UNICLIP_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match="was built without CUDA; install one that was built with it"):
        setup.find_cuda("c++")


def test_make_install_brings_what_the_build_requires():
    requires = (ROOT / "pyproject.toml").read_text().split("requires = [", 1)[1].split("]\n", 1)[0]
    makefile = (ROOT / "Makefile").read_text()
    for requirement in requires.split(", "):
        requirement = requirement.strip('"').split(";")[0]
        # It builds beside any torch of those; what is installed is one.
        assert requirement.replace("torch>=2.10", "torch==2.") in makefile


def python(*args: str | Path, cwd: Path, **environment: str) -> str:
    return run(sys.executable, *args, cwd=cwd, **environment)


def outside(*args: str | Path, cwd: Path, target: Path) -> str:
    """Python with the package of a folder, and without site: an editable install would lend it what it lacks."""
    site = Path(torch.__file__).parents[1]
    return python("-S", *args, cwd=cwd, PYTHONPATH=f"{target}{os.pathsep}{site}")


def test_sdist_and_wheel(tmp_path):
    """Builds both, and runs the installed wheel where no source is near; `make release` does so with CUDA in it."""
    tree = copy_sources(tmp_path / "tree")
    python("-m", "build", "--no-isolation", cwd=tree, UNICLIP_BUILD_CUDA="0")
    (sdist,), (wheel,) = (tree / "dist").glob("*.tar.gz"), (tree / "dist").glob("*.whl")

    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert not [name for name in held if name.startswith("tests/")]
    assert {str(p.relative_to(tree)) for p in (tree / "csrc").rglob("*") if p.is_file()} <= held

    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    package = [p for p in (tree / "uniclip_kernels").rglob("*") if p.suffix in (".py", ".typed")]
    extensions = {name for name in held if name.endswith(".so")}
    assert held - extensions == {str(p.relative_to(tree)) for p in package}
    (extension,) = extensions
    assert Path(extension).name.startswith("_C.")

    install(sys.executable, wheel, target)
    assert_names_no_folder(target / extension, tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    printed = outside("-c", "import uniclip_kernels as u; print(u.__file__)", cwd=elsewhere, target=target)
    assert printed == f"{target / 'uniclip_kernels' / '__init__.py'}\n"
    told = outside("-m", "uniclip_kernels.info", cwd=elsewhere, target=target)
    assert re.search(r"\n +cpu +usable\n", told)
    assert "uniclip_kernels._cuda was not built" in told

    copy_tests(elsewhere)
    outside("-m", "pytest", "-p", "no:cacheprovider", "tests/test_modules.py", cwd=elsewhere, target=target)


def assert_names_no_folder(extension: Path, built_in: Path) -> None:
    machine_code = extension.read_bytes()
    assert str(built_in).encode() not in machine_code
    assert str(Path(torch.__file__).parent).encode() not in machine_code
    assert (b"libcudart.so." in machine_code) == extension.name.startswith("_cuda"), (
        "by its name, torch having loaded it"
    )


@pytest.mark.parametrize("name", ["_C", "_cuda"])
def test_machine_code_names_no_folder(name):
    assert_names_no_folder(Path(extension(name)), ROOT)


USE_IT = """
import torch
from uniclip_kernels import backends, mp_nce
print(mp_nce(torch.eye(4), torch.tensor([0, 0, 1, 1]), temperature=1.0).item())
print(backends()["cpu"])
try:
    mp_nce(torch.eye(4), torch.tensor([0, 0, 1, 1]), backend="cpu")
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++")
def test_the_wheel_that_clang_builds(tmp_path):
    """Products in fixed point and in bfloat16 are inline assembly, in which compilers differ."""
    wheel = build(sys.executable, tmp_path, CXX="clang++", UNICLIP_BUILD_CUDA="0")
    target = tmp_path / "installed"
    install(sys.executable, wheel, target)
    program = (
        "import torch; from uniclip_kernels import info, mp_nce; from uniclip_kernels.cpu import BACKEND;"
        "z, ids = torch.randn(300, 64), torch.arange(300) // 3;"
        "BACKEND.bfloat16_products = torch.int16;"
        "close = lambda z, e: torch.testing.assert_close(mp_nce(z, ids), mp_nce(z, ids, backend='reference'), rtol=e, atol=e);"
        "close(z, 1e-5); close(z.bfloat16(), 1e-2); print('clang' in info.describe())"
    )
    assert outside("-c", program, cwd=tmp_path, target=target).strip() == "True"


def test_installed_without_a_compiler(tmp_path):
    wheel = build(sys.executable, tmp_path, PATH=str(tmp_path), CXX="", UNICLIP_BUILD_CUDA="")
    assert wheel.name.endswith("-py3-none-any.whl")
    install(sys.executable, wheel, tmp_path / "installed")
    loss, reason, error = outside("-c", USE_IT, cwd=tmp_path, target=tmp_path / "installed").splitlines()
    assert float(loss) == pytest.approx(1.0986123)  # log(1 + 2)
    assert "uniclip_kernels._C was not built" in reason
    assert "C++ compiler" in reason
    assert error == f"backend 'cpu' is not usable here: {reason}"


def test_an_extension_that_does_not_load(tmp_path):
    package = copy_sources(tmp_path) / "uniclip_kernels"
    source = 'extern "C" void* of_a_newer_torch(); extern "C" void* PyInit__C() { return of_a_newer_torch(); }'
    (tmp_path / "extension.cpp").write_text(source)
    target = package / "_C.abi3.so"
    run(os.environ.get("CXX") or "c++", "-shared", "-fPIC", "extension.cpp", "-o", target, cwd=tmp_path)
    loss, reason, error = outside("-c", USE_IT, cwd=tmp_path, target=tmp_path).splitlines()
    assert float(loss) == pytest.approx(1.0986123)
    assert f"uniclip_kernels._C does not load beside torch {torch.__version__}" in reason
    assert "of_a_newer_torch" in reason
    assert "pip install --no-build-isolation --force-reinstall" in reason
    assert error == f"backend 'cpu' is not usable here: {reason}"
