"""The few choices that depend on the part: configurations of the kernels over tiles, and how float32 is multiplied."""

from __future__ import annotations

import functools

import torch
import triton

from .positives import positives_forward_kernel, positives_grad_kernel
from .similarity_grad import similarity_grad_kernel
from .similarity_matrix import similarity_matrix_kernel


@functools.cache
def architecture(device: torch.device) -> str:
    """ "80", "90", "100", "120" and the like for CUDA, "gfx942" and the like for ROCm."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"{properties.major}{properties.minor}"


def configurations(kernel: triton.JITFunction, arch: str, dtype: torch.dtype) -> list[dict[str, int]]:
    """Configurations of the kernels over tiles: the one that is used, then others that `make gpu` measures beside it.

    On sm_90 the copy engine and one exponential an element were measured to pay; elsewhere nothing was measured.
    """
    found = _of_products(kernel, arch, dtype)
    if "ONE_EXPONENTIAL" not in kernel.arg_names:
        return found
    one = arch == "90" and dtype != torch.float32
    return [c | {"ONE_EXPONENTIAL": one} for c in found] + [found[0] | {"ONE_EXPONENTIAL": not one}]


def _of_products(kernel: triton.JITFunction, arch: str, dtype: torch.dtype) -> list[dict[str, int]]:
    """With 16-bit rows four warps do: they have 128 sums a thread, and the rest fits beside these in the 255 registers that
    let two programs share a multiprocessor, where one multiplies while the other takes exponentials. float32 needs more, and so
    do the table entries that ``similarity_matrix_kernel`` has for each element, and the loop over tiles of positives on parts
    whose products have their operands in registers too.
    """
    loops = kernel in (positives_forward_kernel, positives_grad_kernel) and arch.startswith(("8", "12"))
    if dtype == torch.float32:
        two, three, four = (_configuration(16, stages, 8) for stages in (2, 3, 4))
        return [two] if loops and arch.startswith("8") else [four, three]
    num_warps = 8 if kernel is similarity_matrix_kernel or loops else 4
    narrow, shallow, deep = (_configuration(*c, num_warps) for c in ((32, 4), (64, 2), (64, 3)))
    if arch == "90":
        return [deep | {"DESCRIPTORS": True}, deep]
    if loops or (arch.startswith("8") and kernel is similarity_grad_kernel):
        return [narrow, deep]  # pointers to more columns would take the last registers
    if arch.startswith(("12", "gfx")):  # where two programs share 100 KB or less
        return [shallow, narrow]
    return [deep, shallow]


def _configuration(block_d: int, num_stages: int, num_warps: int) -> dict[str, int]:
    return {"BLOCK_D": block_d, "DESCRIPTORS": False, "num_warps": num_warps, "num_stages": num_stages}


def precision(arch: str, dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: IEEE quality for float32 unless PyTorch allows TF32."""
    if dtype != torch.float32:
        return "ieee"  # says nothing about 16-bit operands, whose products are exact
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee" if arch.startswith("gfx") else "tf32x3"
