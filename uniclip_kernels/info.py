"""``python -m uniclip_kernels.info``: what is built, for what, and why a backend is not usable here."""

from __future__ import annotations

import platform

import torch

from . import __version__, backends


def describe() -> str:
    """The report as text, one fact a line."""
    lines = [
        f"uniclip-kernels  {__version__}",
        f"torch            {torch.__version__} (CUDA {torch.version.cuda or 'none'}, ROCm {torch.version.hip or 'none'})",
        f"python           {platform.python_version()} on {platform.platform()}",
        *_extension(),
        "",
        "backends",
        *(f"  {name:<14} {'usable' if reason is None else reason}" for name, reason in backends().items()),
    ]
    return "\n".join(lines)


def _extension() -> list[str]:
    try:
        from . import _C
    except ImportError as error:
        return [f"extension        not built ({error})"]
    vectors, bf16 = _C.cpu_instruction_set(), _C.cpu_has_fast_bfloat16()
    return [
        f"extension        built by {_C.compiler} for torch {_C.torch_version}",
        f"cpu              {vectors} vectors, {torch.get_num_threads()} threads, "
        f"bfloat16 products {'in bfloat16' if bf16 else 'in float32'}",
    ]


if __name__ == "__main__":
    print(describe())
