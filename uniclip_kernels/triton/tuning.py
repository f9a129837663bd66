"""The few choices that depend on the part: configurations of the kernels over tiles, and how float32 is multiplied."""

from __future__ import annotations

import functools
import os

import torch
import triton


@functools.cache
def architecture(device: torch.device) -> str:
    """ "80", "90", "100", "120" and the like for CUDA, "gfx942" and the like for ROCm."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"{properties.major}{properties.minor}"


def configurations(kernel: triton.JITFunction, arch: str, dtype: torch.dtype) -> list[dict[str, int]]:
    """Configurations to choose from, the one to take without measurements first."""
    half_depth = 1 if dtype == torch.float32 else 2  # as many bytes of a row at a time in each dtype
    shallow = {"BLOCK_D": 16 * half_depth, "num_warps": 8, "num_stages": 4}
    deep = {"BLOCK_D": 32 * half_depth, "num_warps": 8, "num_stages": 3}
    return [shallow, deep]


def precision(arch: str, dtype: torch.dtype) -> str:
    """``input_precision`` of ``tl.dot``: IEEE quality for float32 unless PyTorch allows TF32."""
    if dtype != torch.float32:
        return "ieee"  # says nothing about 16-bit operands, whose products are exact
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee" if arch.startswith("gfx") else "tf32x3"


def autotune_enabled() -> bool:
    """UNICLIP_TRITON_AUTOTUNE=0 takes the first configuration without measuring any."""
    return os.environ.get("UNICLIP_TRITON_AUTOTUNE") != "0"


@functools.cache
def tuned(kernel: triton.JITFunction, arch: str, dtype: torch.dtype) -> triton.runtime.Autotuner:
    """The kernel with a choice of configurations, measured once for each D; the outcome is kept on disk."""
    configs = [
        triton.Config({"BLOCK_D": c["BLOCK_D"]}, num_warps=c["num_warps"], num_stages=c["num_stages"])
        for c in configurations(kernel, arch, dtype)
    ]
    return triton.autotune(configs, key=["D"], cache_results=True)(kernel)
