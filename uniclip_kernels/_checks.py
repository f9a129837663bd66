"""What the public functions demand of their arguments.

``check_shapes`` looks at host facts only (types, ranks, dtypes, devices), costs nothing on the device and can be traced by
``torch.compile``. ``check_values`` looks into tensors: on the CPU it raises at once; on other devices one fused assertion is
queued (``torch._assert_async``), which never makes the host wait and is a device-side error when it fails. Set the
environment variable ``UNICLIP_CHECK_VALUES=0`` to leave it out.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from ._problem import accumulator_dtype

REDUCTIONS = ("mean", "sum", "none")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_embeddings(name: str, z: Tensor) -> None:
    if not isinstance(z, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(z).__name__}")
    _check_dense(name, z)
    if z.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {z.dtype}")
    if z.dtype == torch.float64 and z.device.type != "cpu":
        raise TypeError(f"{name} in float64 is supported on the CPU only, got a tensor on {z.device}")
    if z.ndim != 2:
        raise ValueError(f"{name} must have shape (rows, D), got shape {tuple(z.shape)}")
    if z.shape[1] == 0:
        raise ValueError(f"{name} must have D of at least 1, got shape {tuple(z.shape)}")


def check_ids(name: str, ids: Tensor, rows_name: str, rows: Tensor) -> None:
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} must be an integer tensor, got {type(ids).__name__}")
    _check_dense(name, ids)
    if ids.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be an integer tensor, got {ids.dtype}")
    if ids.ndim != 1 or ids.shape[0] != rows.shape[0]:
        raise ValueError(
            f"{name} must have shape ({rows.shape[0]},), one for each row of {rows_name}, got {tuple(ids.shape)}"
        )
    if ids.device != rows.device:
        raise ValueError(f"{name} must be on the device of {rows_name}, {rows.device}, got {ids.device}")


def check_tables(embeddings: Tensor, **tables: float | Tensor | None) -> None:
    """Numbers, 0-dim tensors or square matrices, all matrices of one K, on the device of the embeddings."""
    k = None
    for name, value in tables.items():
        if value is None and name == "domain_mask":
            continue
        if not isinstance(value, Tensor):
            if name == "domain_mask":
                raise TypeError(f"domain_mask must be a (K, K) bool tensor, got {type(value).__name__}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
            _check_number(name, float(value), accumulator_dtype(embeddings.dtype))
            continue
        _check_dense(name, value)
        if name == "domain_mask" and value.dtype != torch.bool:
            raise TypeError(f"domain_mask must be a bool tensor, got {value.dtype}")
        if name != "domain_mask" and not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
        if value.ndim == 0 and name != "domain_mask":
            continue  # a 0-dim tensor may stay on the CPU, as everywhere in PyTorch
        if value.ndim != 2 or value.shape[0] != value.shape[1] or value.shape[0] == 0:
            raise ValueError(f"{name} must have shape (K, K), got {tuple(value.shape)}")
        if k is not None and value.shape[0] != k[1]:
            raise ValueError(f"{name} must have the ({k[1]}, {k[1]}) shape of {k[0]}, got {tuple(value.shape)}")
        k = k or (name, value.shape[0])
        if value.device != embeddings.device and not (name == "domain_mask" and value.device.type == "cpu"):
            raise ValueError(f"{name} must be on the device of the embeddings, {embeddings.device}, got {value.device}")


def check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")


def check_reverse_mode(function: str, *inputs: Tensor) -> None:
    """The operators know no forward-mode derivative, and PyTorch would call it zero without a word."""
    if any(unpack_dual(z).tangent is not None for z in inputs):
        raise RuntimeError(f"{function} has no forward-mode derivative (jvp): call it with backend='reference' for one")


def values_are_checked() -> bool:
    return os.environ.get("UNICLIP_CHECK_VALUES") != "0"


def values_wanted(has_mask: bool, has_domain_ids: bool, num_domains: int | None) -> str:
    """What an assertion on a device says, which knows only that one of these is not so."""
    wanted = [*_TABLES_WANTED, *[_MASK_WANTED] * has_mask]
    if has_domain_ids:
        wanted.append(_ids_wanted("domain_ids", num_domains))
    return "uniclip_kernels: " + "; ".join(wanted)


def check_values(
    temperature: Tensor,
    offset: Tensor,
    domain_ids: dict[str, Tensor],
    num_domains: int | None,
    weight: Tensor | None = None,
    domain_mask: Tensor | None = None,
) -> None:
    """``temperature``, ``offset``, ``weight`` are full (K, K) tables; ``num_domains`` is None where K does not matter."""
    if not values_are_checked():
        return
    conditions = _of_tables(temperature, offset, weight, domain_mask)
    for name, ids in domain_ids.items():
        top = math.inf if num_domains is None else num_domains
        inside = (ids >= 0) & (ids.long() < top)  # K itself may not fit the type of the ids
        conditions.append((_ids_wanted(name, num_domains), ids, inside))
    if temperature.device.type != "cpu":
        fused = torch.stack([good.all() for _, _, good in conditions]).all()
        torch._assert_async(fused, "uniclip_kernels: " + "; ".join(message for message, _, _ in conditions))
        return
    _raise_first(conditions)


def check_tables_now(temperature: Tensor, offset: Tensor, weight: Tensor, domain_mask: Tensor | None) -> None:
    """Whatever the environment says, and waiting for devices: for what is checked once."""
    tables = temperature.cpu(), offset.cpu(), weight.cpu(), None if domain_mask is None else domain_mask.cpu()
    _raise_first(_of_tables(*tables))


_TABLES_WANTED = "temperature must be positive and finite", "offset must be finite", "weight must be finite"
_MASK_WANTED = "domain_mask must be symmetric"
_Condition = tuple[str, Tensor, Tensor]  # what must hold, of which tensor, where it does


def _of_tables(
    temperature: Tensor, offset: Tensor, weight: Tensor | None, domain_mask: Tensor | None
) -> list[_Condition]:
    good = (temperature > 0) & temperature.isfinite(), offset.isfinite(), None if weight is None else weight.isfinite()
    conditions = [c for c in zip(_TABLES_WANTED, (temperature, offset, weight), good, strict=True) if c[1] is not None]
    if domain_mask is not None:
        conditions.append((_MASK_WANTED, domain_mask, domain_mask == domain_mask.T))
    return conditions


def _ids_wanted(name: str, num_domains: int | None) -> str:
    return f"{name} must be in [0, {'K' if num_domains is None else num_domains})"


def _raise_first(conditions: list[_Condition]) -> None:
    for message, value, good in conditions:
        if not good.all():
            raise ValueError(f"{message}, got {_culprit(value, good)}")


def _check_dense(name: str, value: Tensor) -> None:
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")


def _check_number(name: str, value: float, dtype: torch.dtype) -> None:
    # By comparisons, which torch.compile can trace where the number is a variable of the graph.
    if name == "temperature" and not 0 < value < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {value}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    if not -torch.finfo(dtype).max <= value <= torch.finfo(dtype).max:
        raise ValueError(f"{name} must be finite in {dtype}, got {value}")


def _culprit(value: Tensor, good: Tensor) -> str:
    index = tuple((~good).nonzero()[0].tolist())
    return f"{value[index].item()} at {list(index)}"
