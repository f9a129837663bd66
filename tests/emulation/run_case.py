"""Run one case of mp_nce from outside through any backend, the emulated ones too.

    python -m tests.emulation.run_case --backend NAME in.npz out.npz

in.npz: embeddings (M, D) float32 values; dtype, "float32" | "bfloat16" | "float16", what they are cast to; sample_ids and
domain_ids (M,); temperature, offset, weight and domain_mask (K, K); reduction, "mean" | "sum"; normalize.
out.npz: loss, grad_embeddings, grad_temperature, grad_offset, all float64.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable

import numpy as np

DTYPES = ("float32", "bfloat16", "float16")
REDUCTIONS = ("mean", "sum")


def _as_it_is(name: str) -> Callable:
    return lambda: contextlib.nullcontext(name)


@contextlib.contextmanager
def _triton_interpreted():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported, hence the imports in functions
    from .triton_backends import installed, interpreted

    with installed(interpreted()):
        yield "triton"


@contextlib.contextmanager
def _triton_ptx():
    from .triton_backends import executed_ptx, installed

    with installed(executed_ptx()):
        yield "triton"


#: For each name a context manager that yields the backend to ask mp_nce for.
BACKENDS = {
    "reference": _as_it_is("reference"),
    "cpu": _as_it_is("cpu"),
    "triton-interpreted": _triton_interpreted,
    "triton-ptx": _triton_ptx,
}


def run_case(backend: str, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of out.npz for those of in.npz."""
    with BACKENDS[backend]() as name:
        import torch

        import uniclip_kernels

        dtype, reduction = str(case["dtype"]), str(case["reduction"])
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")

        def leaf(key: str, to: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.from_numpy(np.array(case[key], dtype=np.float32)).to(to).requires_grad_()

        embeddings = leaf("embeddings", getattr(torch, dtype))
        temperature, offset = leaf("temperature"), leaf("offset")
        ids = [torch.from_numpy(np.array(case[key], dtype=np.int64)) for key in ("sample_ids", "domain_ids")]
        loss = uniclip_kernels.mp_nce(
            embeddings,
            *ids,
            temperature=temperature,
            offset=offset,
            weight=leaf("weight").detach(),
            domain_mask=torch.from_numpy(np.array(case["domain_mask"], dtype=bool)),
            reduction=reduction,
            normalize=bool(case["normalize"]),
            backend=name,
        )
        loss.backward()
        out = {"loss": loss.detach(), "grad_embeddings": embeddings.grad}
        out |= {"grad_temperature": temperature.grad, "grad_offset": offset.grad}
        return {key: value.double().numpy() for key, value in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True, choices=BACKENDS)
    parser.add_argument("input", metavar="in.npz")
    parser.add_argument("output", metavar="out.npz")
    arguments = parser.parse_args()
    with np.load(arguments.input) as case:
        result = run_case(arguments.backend, dict(case))
    np.savez(arguments.output, **result)


if __name__ == "__main__":
    main()
