"""Triton kernels compiled ahead of time, and what the machine code says: no device is needed.

Registers and local memory come from cuobjdump, instructions from nvdisasm; both are in Triton's package.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from uniclip_kernels.triton import TritonBackend, tuning
from uniclip_kernels.triton.similarity_grad import similarity_grad_kernel
from uniclip_kernels.triton.similarity_lse import similarity_lse_kernel
from uniclip_kernels.triton.similarity_matrix import similarity_matrix_kernel

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_CACHE = Path(__file__).resolve().parents[2] / "build" / "triton-cache"
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_ROWS = ("rows", "h", "x", "y")  # pointers in the dtype of the rows
_INT32 = ("ids", "tiles", "x_domains", "y_domains")
_FLOAT32 = ("temperature", "offset", "by_row", "by_col", "lse", "coefficient", "parts", "s")

TILE_KERNELS = (similarity_lse_kernel, similarity_grad_kernel, similarity_matrix_kernel)
#: The tensor-core instruction of each architecture.
TENSOR_CORE = {"80": "HMMA", "90": "HGMMA", "100": "UTCHMMA", "120": "HMMA"}


@dataclass(frozen=True)
class Facts:
    registers: int
    stack: int  # bytes of local memory a thread, where spills show
    shared: int  # bytes a program
    warps: int
    listing: tuple[tuple[str, str], ...]  # (opcode, text) in order

    @functools.cached_property
    def counts(self) -> Counter:
        return Counter(opcode for opcode, _ in self.listing)

    def spills(self) -> bool:
        return self.stack > 0 or self.counts["STL"] > 0 or self.counts["LDL"] > 0


def compile_tile_kernel(
    kernel: triton.JITFunction,
    arch: str,
    dtype: torch.dtype,
    d: int = 512,
    diagonal: bool = False,
    **overrides: int,
) -> CompiledKernel:
    """A kernel over tiles for ``arch`` in the configuration that comes first there, unless overridden."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(_CACHE))
    options = tuning.configurations(kernel, arch, dtype)[0] | overrides
    constants = {"D": d, "DIAGONAL": diagonal, "BLOCK": TritonBackend.block, "BLOCK_D": options.pop("BLOCK_D")}
    constants["PRECISION"] = tuning.precision(arch, dtype)
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = dict.fromkeys(_ROWS, "*" + _NAMES[dtype]) | dict.fromkeys(_INT32, "*i32") | dict.fromkeys(_FLOAT32, "*fp32")
    types["domain_mask"] = "*u8"
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if n in types}
    hip = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if hip else GPUTarget("cuda", int(arch), 32)
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)


def facts(compiled: CompiledKernel) -> Facts:
    """What the cubin of a kernel for CUDA says."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    instruction = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[^;]*);|^(\.L_\w+):", re.M)
    listing = [(m[2], m[1]) if m[2] else ("label", m[3]) for m in instruction.finditer(code)]
    return Facts(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        listing=tuple(listing),
    )


def product_loop(code: Facts, tensor_core: str) -> Counter:
    """Instructions from the first to the last tensor-core one: the loop over D, unrolled or not."""
    at = [i for i, (opcode, _) in enumerate(code.listing) if opcode == tensor_core]
    return Counter(opcode for opcode, _ in code.listing[at[0] : at[-1] + 1]) if at else Counter()


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout
