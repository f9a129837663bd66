"""Run one case of an objective from outside through any backend, the emulated ones too.

    python -m tests.emulation.run_case --backend NAME in.npz out.npz

in.npz: embeddings (M, D) float32 values; dtype, "float32" | "bfloat16" | "float16", what they are cast to; sample_ids and
domain_ids (M,); temperature, offset, weight and domain_mask (K, K); reduction, "mean" | "sum" | "none"; normalize. And, each
optional: objective, "mp_nce" | "sup_con" | "mil_nce" (without use for weight) | "siglip"; exclude_ids and anchor_weight
(M,); candidates (Q, D), cast as the embeddings are, with candidate_sample_ids, candidate_domain_ids and candidate_exclude_ids
(Q,); candidates_require_grad, true if not given; upstream, the gradient of the loss in its shape, ones if not given.
out.npz: loss, grad_embeddings, grad_temperature, grad_offset, and, where they were given, grad_candidates and
grad_anchor_weight, all float64; it appears when it is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from uniclip_kernels._backend import Backend

KEYS = ("embeddings", "dtype", "sample_ids", "domain_ids", "temperature", "offset", "weight", "domain_mask")
KEYS += ("reduction", "normalize")
OPTIONAL = ("objective", "exclude_ids", "anchor_weight", "upstream", "candidates", "candidates_require_grad")
OPTIONAL += ("candidate_sample_ids", "candidate_domain_ids", "candidate_exclude_ids")
IDS = tuple(key for key in KEYS + OPTIONAL if key.endswith("_ids"))
OBJECTIVES = ("mp_nce", "sup_con", "mil_nce", "siglip")
DTYPES = ("float32", "bfloat16", "float16")
REDUCTIONS = ("mean", "sum", "none")
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


#: For each name the backend that is asked for, and what takes its place.
EMULATED = {
    "triton-interpreted": _triton_interpreted,
    "triton-ptx": _triton_ptx,
    "cuda-emulated": _cuda_emulated,
    "cuda-ptx": _cuda_ptx,
}
BACKENDS = ("reference", "cpu", *EMULATED)


def run_case(backend: str, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of out.npz for those of in.npz."""
    _check_keys(case)
    name, emulation = EMULATED[backend]() if backend in EMULATED else (backend, None)
    import torch

    import uniclip_kernels

    from .installed import installed

    objective, arguments, wanted = _arguments(case)
    for key in wanted:
        arguments[key].requires_grad_()
    with installed(name, emulation) if emulation else contextlib.nullcontext():
        loss = getattr(uniclip_kernels, objective)(**arguments, backend=name)
        upstream = _tensor(case, "upstream", np.float32).to(loss) if "upstream" in case else torch.ones_like(loss)
        if upstream.shape != loss.shape:
            raise ValueError(
                f"upstream must have shape {tuple(loss.shape)}, that of the loss, got {tuple(upstream.shape)}"
            )
        grads = torch.autograd.grad(loss, [arguments[key] for key in wanted], upstream, materialize_grads=True)
    values = {"loss": loss.detach()} | {f"grad_{key}": grad for key, grad in zip(wanted, grads, strict=True)}
    return {key: value.double().numpy() for key, value in values.items()}


def _check_keys(case: dict[str, np.ndarray]) -> None:
    missing = [key for key in KEYS if key not in case]
    if "candidates" in case and "candidate_sample_ids" not in case:
        missing.append("candidate_sample_ids")
    if missing:
        raise ValueError(f"the case lacks {', '.join(missing)}")
    alone = [key for key in OPTIONAL if key.startswith("candidate") and key in case and "candidates" not in case]
    if alone:
        raise ValueError(f"the case has {', '.join(alone)}, but no candidates")


def _arguments(case: dict[str, np.ndarray]) -> tuple[str, dict[str, Any], list[str]]:
    """The objective, its arguments, and those whose gradient is wanted."""
    import torch

    def given(*keys: str) -> list[str]:
        return [key for key in keys if key in case]

    objective = _choice(case, "objective", OBJECTIVES) if "objective" in case else "mp_nce"
    dtype = getattr(torch, _choice(case, "dtype", DTYPES))
    arguments = {key: _tensor(case, key, np.float32).to(dtype) for key in given("embeddings", "candidates")}
    arguments |= {key: _tensor(case, key, np.int64) for key in given(*IDS)}
    floats = given("temperature", "offset", "anchor_weight", *["weight"] * (objective != "mil_nce"))
    arguments |= {key: _tensor(case, key, np.float32) for key in floats}
    arguments["domain_mask"] = _tensor(case, "domain_mask", np.bool_)
    arguments["reduction"] = _choice(case, "reduction", REDUCTIONS)
    arguments["normalize"] = bool(_choice(case, "normalize", (True, False)))
    wanted = given("embeddings", "temperature", "offset", "candidates", "anchor_weight")
    if "candidates_require_grad" in case and not _choice(case, "candidates_require_grad", (True, False)):
        wanted.remove("candidates")
    return objective, arguments, wanted


def _choice(case: dict[str, np.ndarray], key: str, allowed: tuple) -> Any:
    if case[key].size != 1 or case[key].item() not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(map(str, allowed))}, got {case[key].tolist()!r}")
    return case[key].item()


def _tensor(case: dict[str, np.ndarray], key: str, to: type) -> Tensor:
    import torch

    if case[key].dtype.kind not in _KINDS[to]:
        raise ValueError(f"{key} cannot be an array of {case[key].dtype}")
    values = case[key].astype(to)
    if to is not np.float32 and (values != case[key]).any():
        raise ValueError(f"{key} has values that are no {to.__name__}")
    return torch.from_numpy(values)


def _read(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not an npz file")
        with np.load(file) as arrays:
            return {key: np.asarray(arrays[key]) for key in KEYS + OPTIONAL if key in arrays}


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
