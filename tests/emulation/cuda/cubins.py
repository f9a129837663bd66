"""The machine code of csrc/cuda: cubins out of the extension that setup.py built, launches out of the emulated launchers."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from .. import machine_code
from ..machine_code import Code
from . import backends, build

ARCHITECTURES = ("80", "90", "100", "120")
OPERANDS = ("BFloat16", "Half", "Float", "TF32")  # as in operands.h
TILE_KERNELS = ("similarity_lse_kernel", "similarity_grad_kernel", "similarity_matrix_kernel")


def extension() -> Path | None:
    """uniclip_kernels._cuda, or None where it was left out."""
    spec = importlib.util.find_spec("uniclip_kernels._cuda")
    return Path(spec.origin) if spec else None


@functools.cache
def kernels(arch: str) -> dict[str, Code]:
    """Every kernel for an architecture, by its mangled name."""
    launches = _launches()
    return {name: replace(code, **launches[name]) for name, code in _read(arch).items()}


@functools.cache
def hopper_kernels() -> dict[str, Code]:
    """Those of csrc/cuda/hopper, which the host cannot launch: without shared memory."""
    return {name: replace(code, threads=256 if "merge" in name else 384) for name, code in _read("90a").items()}


def _read(arch: str) -> dict[str, Code]:
    found: dict[str, Code] = {}
    with tempfile.TemporaryDirectory() as folder:
        machine_code.run("cuobjdump", "-xelf", f"sm_{arch}", extension(), cwd=Path(folder))
        for cubin in sorted(Path(folder).glob(f"*.sm_{arch}.cubin")):
            found |= machine_code.read(cubin.read_bytes())
    return found


def tile_kernel(name: str, operand: str, arch: str) -> Code:
    instance = f"{len(name)}{name}INS0_{len(operand)}{operand}E"
    (code,) = (code for mangled, code in kernels(arch).items() if instance in mangled)
    return code


@functools.cache
def _launches() -> dict[str, dict[str, int]]:
    """Threads and shared memory that each launcher asks for, from calls whose arguments are all 128: nothing is run."""
    library = ctypes.CDLL(str(build.library()))
    found: dict[str, dict[str, int]] = {}

    @backends._HOOK
    def hook(kernel, blocks, threads, shared_bytes, count, arguments) -> None:
        found[kernel.decode()] = {"threads": threads, "shared": shared_bytes}

    library.emulation_set_launch_hook(hook)
    for name, parameters in re.findall(r"int (uniclip_cuda_\w+)\(([^)]*)\)", (build.KERNELS / "ops.h").read_text()):
        for operand in range(len(OPERANDS)):
            first = operand if "Operand" in parameters else 128
            rest = [ctypes.c_int64(128)] * parameters.count(",")
            getattr(library, name)(ctypes.c_int64(first), *rest)
    library.emulation_set_launch_hook(None)
    return found
