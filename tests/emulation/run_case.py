"""Run one case of mp_nce from outside through any backend, the emulated ones too.

    python -m tests.emulation.run_case --backend NAME in.npz out.npz

in.npz: embeddings (M, D) float32 values; dtype, "float32" | "bfloat16" | "float16", what they are cast to; sample_ids and
domain_ids (M,); temperature, offset, weight and domain_mask (K, K); reduction, "mean" | "sum"; normalize.
out.npz: loss, grad_embeddings, grad_temperature, grad_offset, all float64; it appears when it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from uniclip_kernels._backend import Backend

KEYS = ("embeddings", "dtype", "sample_ids", "domain_ids", "temperature", "offset", "weight", "domain_mask")
KEYS += ("reduction", "normalize")
DTYPES = ("float32", "bfloat16", "float16")
REDUCTIONS = ("mean", "sum")
_KINDS = {np.float32: "fiu", np.int64: "iu", np.bool_: "biu"}  # of arrays that can be read as each type


def _triton_interpreted() -> tuple[str, Backend]:
    # Triton reads it when it is first imported, as it is with torch: hence the imports in functions.
    os.environ["TRITON_INTERPRET"] = "1"
    from .triton_backends import interpreted

    return "triton", interpreted()


def _triton_ptx() -> tuple[str, Backend]:
    from .triton_backends import executed_ptx

    return "triton", executed_ptx()


def _cuda_emulated() -> tuple[str, Backend]:
    from .cuda.backends import emulated

    return "cuda", emulated()


def _cuda_ptx() -> tuple[str, Backend]:
    from .cuda.backends import executed_ptx

    return "cuda", executed_ptx(80)


#: For each name the backend that mp_nce is asked for, and what takes its place.
EMULATED = {
    "triton-interpreted": _triton_interpreted,
    "triton-ptx": _triton_ptx,
    "cuda-emulated": _cuda_emulated,
    "cuda-ptx": _cuda_ptx,
}
BACKENDS = ("reference", "cpu", *EMULATED)


def run_case(backend: str, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of out.npz for those of in.npz."""
    missing = [key for key in KEYS if key not in case]
    if missing:
        raise ValueError(f"the case lacks {', '.join(missing)}")
    name, emulation = EMULATED[backend]() if backend in EMULATED else (backend, None)
    import torch

    from uniclip_kernels import mp_nce

    from .installed import installed

    def choice(key: str, allowed: tuple) -> str:
        if case[key].size != 1 or case[key].item() not in allowed:
            raise ValueError(f"{key} must be one of {', '.join(map(str, allowed))}, got {case[key].tolist()!r}")
        return case[key].item()

    def tensor(key: str, to: type) -> Tensor:
        if case[key].dtype.kind not in _KINDS[to]:
            raise ValueError(f"{key} cannot be an array of {case[key].dtype}")
        values = case[key].astype(to)
        if to is not np.float32 and (values != case[key]).any():
            raise ValueError(f"{key} has values that are no {to.__name__}")
        return torch.from_numpy(values)

    dtype = getattr(torch, choice("dtype", DTYPES))
    embeddings = tensor("embeddings", np.float32).to(dtype)
    temperature, offset, weight = (tensor(key, np.float32) for key in ("temperature", "offset", "weight"))
    leaves = [t.requires_grad_() for t in (embeddings, temperature, offset)]
    ids = [tensor(key, np.int64) for key in ("sample_ids", "domain_ids")]
    options = dict(
        weight=weight,
        domain_mask=tensor("domain_mask", np.bool_),
        reduction=choice("reduction", REDUCTIONS),
        normalize=bool(choice("normalize", (True, False))),
    )

    with installed(name, emulation) if emulation else contextlib.nullcontext():
        loss = mp_nce(embeddings, *ids, temperature=temperature, offset=offset, **options, backend=name)
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
    names = ("loss", "grad_embeddings", "grad_temperature", "grad_offset")
    return {key: value.detach().double().numpy() for key, value in zip(names, (loss, *grads), strict=True)}


def _read(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not an npz file")
        with np.load(file) as arrays:
            return {key: np.asarray(arrays[key]) for key in KEYS if key in arrays}


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """All of the file or nothing."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:  # given a name, savez might append to it
            np.savez(file, **arrays)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True, choices=BACKENDS)
    parser.add_argument("input", metavar="in.npz", type=Path)
    parser.add_argument("output", metavar="out.npz", type=Path)
    arguments = parser.parse_args()
    try:
        _write(arguments.output, run_case(arguments.backend, _read(arguments.input)))
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise SystemExit(f"run_case: {error}") from error


if __name__ == "__main__":
    main()
