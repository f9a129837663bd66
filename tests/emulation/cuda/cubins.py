"""The machine code of csrc/cuda: cubins out of the extension that setup.py built, launches out of the emulated operators."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from .. import machine_code
from ..machine_code import Code
from . import backends, build

ARCHITECTURES = ("80", "90", "100", "120")
OPERANDS = ("BFloat16", "Half", "Float", "TF32")  # as in operands.h
TILE_KERNELS = (
    "similarity_lse_kernel",
    "similarity_grad_kernel",
    "similarity_matrix_kernel",
    "positives_forward_kernel",
    "positives_grad_kernel",
)
WITH_FLAG = tuple(name for name in TILE_KERNELS if name != "similarity_matrix_kernel")


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


def tile_kernel(name: str, operand: str, arch: str, flag: bool = False) -> Code:
    """``flag``: the variant for the sigmoid of negatives, or for the softmax of positives."""
    parameters = "E" if name not in WITH_FLAG else f"Lb{int(flag)}EE"
    instance = f"{len(name)}{name}INS0_{len(operand)}{operand}E{parameters}"
    (code,) = (code for mangled, code in kernels(arch).items() if instance in mangled)
    return code


@functools.cache
def _launches() -> dict[str, dict[str, int]]:
    """Threads and shared memory of each kernel, from calls of every operator with 128 for each number: nothing is run."""
    library = backends._library()
    found: dict[str, dict[str, int]] = {}

    @backends._HOOK
    def hook(kernel, blocks, threads, shared_bytes, count, arguments) -> None:
        found[kernel.decode()] = {"threads": threads, "shared": shared_bytes}

    names = (name.split("::") for name in torch._C._dispatch_get_all_op_names())
    operators = [getattr(getattr(torch.ops, space), name).default for space, name in names if space == build.LIBRARY]
    library.emulation_set_launch_hook(hook)
    for dtype, *flags in itertools.product(
        (torch.bfloat16, torch.float16, torch.float32), (False, True), (False, True)
    ):
        tensor = torch.empty(128, 128, 128, dtype=dtype)
        for operator in operators:
            kinds, bools = (str(argument.type) for argument in operator._schema.arguments), itertools.cycle(flags)
            operator(*(next(bools) if kind == "bool" else 128 if kind == "int" else tensor for kind in kinds))
    library.emulation_set_launch_hook(None)
    return found
