"""The extensions ask PyTorch for its stable C interface alone: then they load beside versions they were not built beside."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from uniclip_kernels import _extension

STABLE = re.compile(r"(aoti_)?torch_\w+")
OF_PYTORCH = re.compile(r"torch|c10|aten|_ZN?K?(St)?2at", re.IGNORECASE)


def extension(name: str) -> str:
    if importlib.util.find_spec(f"uniclip_kernels.{name}") is None:
        pytest.skip(f"{name} was not built")
    return _extension.load(name).__file__


def listed(*command: str) -> list[str]:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def unstable(symbols: list[str]) -> list[str]:
    return [s for s in symbols if OF_PYTORCH.search(s) and not STABLE.fullmatch(s)]


@pytest.mark.parametrize("name", ["_C", "_cuda"])
def test_symbols(name):
    symbols = [line.split()[-1] for line in listed("nm", "-D", "--undefined-only", extension(name))]
    assert any(STABLE.fullmatch(s) for s in symbols)
    assert not unstable(symbols)


def test_planted_symbols_are_seen():
    planted = ["_ZN2at6native7cpublas6brgemmElllllblPKfS3_Pfb", "_ZN3c105ErrorD1Ev", "_ZNK2at10TensorBase4sizeEl"]
    assert unstable([*planted, "aoti_torch_get_size", "torch_parallel_for", "_ZSt4cout"]) == planted


@pytest.mark.parametrize("name", ["_C", "_cuda"])
def test_libraries(name):
    needed = re.findall(r"NEEDED.*\[(.*)\]", "\n".join(listed("readelf", "-d", extension(name))))
    of_torch = {library for library in needed if re.search("torch|c10", library)}
    assert of_torch == {"libtorch_cpu.so" if name == "_C" else "libtorch_cuda.so"}, Path(extension(name)).name
