"""``python -m uniclip_kernels.info``: what is built, for what, and why a backend is not usable here."""

from __future__ import annotations

import platform
import re

import torch

from . import __version__, _extension, backends


def describe() -> str:
    """The report as text, one fact a line."""
    return "\n".join(
        [
            f"uniclip-kernels  {__version__}",
            f"torch            {torch.__version__} (CUDA {torch.version.cuda or 'none'}, ROCm {torch.version.hip or 'none'})",
            f"python           {platform.python_version()} on {platform.platform()}",
            *_cpu(),
            *_cuda(),
            "",
            "backends",
            *(f"  {name:<14} {'usable' if reason is None else reason}" for name, reason in backends().items()),
            *_kernels(),
        ]
    )


def _cpu() -> list[str]:
    try:
        extension = _extension.load("_C")
    except ImportError as error:
        return [f"cpu extension    {error}"]
    return [
        f"cpu extension    built by {extension.compiler} beside torch {extension.torch_version}",
        f"processor        {extension.cpu_instruction_set()} vectors, {torch.get_num_threads()} threads, "
        f"bfloat16 products in {extension.cpu_bfloat16_products()}",
    ]


def _cuda() -> list[str]:
    try:
        extension = _extension.load("_cuda")
    except ImportError as error:
        return [f"cuda extension   {error}"]
    built_for = ", ".join(f"sm_{a}" for a in extension.architectures)
    lines = [
        f"cuda extension   built by nvcc of CUDA {extension.cuda_version} beside torch {extension.torch_version}, "
        f"for {built_for} and newer ones"
    ]
    if torch.cuda.is_available():
        capability = "{}.{}".format(*torch.cuda.get_device_capability())
        lines.append(f"device           {torch.cuda.get_device_name()}, compute capability {capability}")
    return lines


def _kernels() -> list[str]:
    """What the compiler said of each CUDA kernel, and of its variants the largest: the driver says the same of what it loads."""
    try:
        extension = _extension.load("_cuda")
    except ImportError:
        return []
    table: dict[str, dict[int, str]] = {}
    for signature, architecture, registers, stack in sorted(
        extension.kernels, key=lambda k: k[2:]
    ):  # the most comes last
        found = re.search(r"(\w+)_kernel(?:<(?:\w+::)*(\w+)[^>]*>)?\(", signature)
        assert found is not None, signature
        kernel, element = found.groups()
        name = kernel if element is None else f"{kernel}, {element.removeprefix('__').removeprefix('nv_').lower()}"
        table.setdefault(name, {})[architecture] = f"{registers}+{stack}" if stack else f"{registers}"
    table = dict(sorted(table.items()))
    heading = "".join(f"{f'sm_{a}':>8}" for a in extension.architectures)
    rows = ("".join(f"{row.get(a, '-'):>8}" for a in extension.architectures) for row in table.values())
    return [
        "",
        "CUDA kernels: registers of a thread (+ bytes of its stack)",
        f"  {'':<36}{heading}",
        *(f"  {name:<36}{row}" for name, row in zip(table, rows, strict=True)),
    ]


if __name__ == "__main__":
    print(describe())
