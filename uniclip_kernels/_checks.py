"""What the public functions demand of their arguments.

Most checks look at host facts only (types, ranks, dtypes, devices), cost nothing on the device and can be traced by
``torch.compile``. ``check_values`` looks into tensors: on the CPU it raises at once; on other devices one fused assertion is
queued (``torch._assert_async``), which never makes the host wait and is a device-side error when it fails. Set the
environment variable ``UNICLIP_CHECK_VALUES=0`` to leave it out: results are then undefined, memory is still safe.
"""

from __future__ import annotations

import math
import numbers
import os
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.forward_ad import unpack_dual

from ._problem import accumulator_dtype

REDUCTIONS = ("mean", "sum", "none")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


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
    if ids.dtype in _UNSIGNED:
        raise TypeError(f"{name} must be int64, int32, int16, int8 or uint8, got {ids.dtype}")
    if ids.dtype not in _INTEGERS:
        raise TypeError(f"{name} must be an integer tensor, got {ids.dtype}")
    if ids.ndim != 1 or ids.shape[0] != rows.shape[0]:
        raise ValueError(
            f"{name} must have shape ({rows.shape[0]},), one for each row of {rows_name}, got {tuple(ids.shape)}"
        )
    if ids.device != rows.device:
        raise ValueError(f"{name} must be on the device of {rows_name}, {rows.device}, got {ids.device}")


def check_tables(embeddings: Tensor, **tables: float | Tensor | None) -> None:
    """Numbers, tensors of one element or square matrices, all matrices of one K, on the device of the embeddings."""
    k = None
    for name, value in tables.items():
        if value is None and name == "domain_mask":
            continue
        check_table_type(name, value)
        if not isinstance(value, Tensor):
            check_number(name, value, accumulator_dtype(embeddings.dtype))
            continue
        single = value.shape in ((), (1,)) and name != "domain_mask"
        if not single:
            if value.ndim != 2 or value.shape[0] != value.shape[1] or value.shape[0] == 0:
                raise ValueError(f"{name} must have shape (K, K), got {tuple(value.shape)}")
            if k is not None and value.shape[0] != k[1]:
                raise ValueError(f"{name} must have the ({k[1]}, {k[1]}) shape of {k[0]}, got {tuple(value.shape)}")
            k = k or (name, value.shape[0])
        # A single element may stay on the CPU, as everywhere in PyTorch.
        on_host = value.device.type == "cpu" and (single or name == "domain_mask")
        if value.device != embeddings.device and not on_host:
            raise ValueError(f"{name} must be on the device of the embeddings, {embeddings.device}, got {value.device}")


def check_table_type(name: str, value: Any) -> None:
    """A floating-point tensor or, as everywhere in PyTorch, any real number but a bool; for the mask a bool tensor."""
    if isinstance(value, Tensor):
        _check_dense(name, value)
        if name == "domain_mask" and value.dtype != torch.bool:
            raise TypeError(f"domain_mask must be a bool tensor, got {value.dtype}")
        if name != "domain_mask" and not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}")
    elif name == "domain_mask":
        raise TypeError(f"domain_mask must be a (K, K) bool tensor, got {type(value).__name__}")
    elif not is_number(value):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(name: str, value: float, dtype: torch.dtype) -> None:
    # By comparisons, which torch.compile can trace where the number is a variable of the graph.
    if name.endswith("temperature") and not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")
    # An int may be too large for a float, as the limits are for NumPy's float16.
    number = value if isinstance(value, int) else float(value)
    if not -torch.finfo(dtype).max <= number <= torch.finfo(dtype).max:
        raise ValueError(f"{name} must be finite in {dtype}, got {value}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def is_integer(value: Any) -> bool:
    """A Python or NumPy integer, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_reduction(reduction: str) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")


def check_reverse_mode(function: str, *inputs: Tensor) -> None:
    """The operators know no forward-mode derivative, and PyTorch would call it zero without a word."""
    if any(unpack_dual(z).tangent is not None for z in inputs):
        raise RuntimeError(f"{function} has no forward-mode derivative (jvp): call it with backend='reference' for one")


def values_are_checked() -> bool:
    return os.environ.get("UNICLIP_CHECK_VALUES") != "0"


def has_values(tensor: Tensor) -> bool:
    """Not so on the meta device, nor of the fake tensors that shapes are found with."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


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
    padding: Tensor | None = None,
) -> None:
    """``temperature``, ``offset``, ``weight`` are full (K, K) tables; ``num_domains`` is None where K does not matter.

    Of rows that are ``padding`` the domain ids do not matter.
    """
    if not values_are_checked() or not has_values(temperature):
        return
    conditions = _of_tables(temperature, offset, weight, domain_mask)
    for name, ids in domain_ids.items():
        top = math.inf if num_domains is None else num_domains
        inside = (ids >= 0) & (ids.long() < top)  # K itself may not fit the type of the ids
        if padding is not None:
            inside |= padding
        conditions.append((_ids_wanted(name, num_domains), ids, inside))
    if temperature.device.type != "cpu":
        fused = torch.stack([good.all() for _, _, good in conditions]).all()
        torch._assert_async(fused, "uniclip_kernels: " + "; ".join(message for message, _, _ in conditions))
        return
    _raise_first(conditions)


def check_tables_now(temperature: Tensor, offset: Tensor, weight: Tensor, domain_mask: Tensor | None) -> None:
    """Whatever the environment says, and waiting for devices: for what is checked once. Those without values pass."""
    tables = temperature, offset, weight, domain_mask
    _raise_first(_of_tables(*(t.cpu() if t is not None and has_values(t) else None for t in tables)))


_TABLES_WANTED = "temperature must be positive and finite", "offset must be finite", "weight must be finite"
_MASK_WANTED = "domain_mask must be symmetric"
_Condition = tuple[str, Tensor, Tensor]  # what must hold, of which tensor, where it does


def _of_tables(
    temperature: Tensor | None, offset: Tensor | None, weight: Tensor | None, domain_mask: Tensor | None
) -> list[_Condition]:
    given = [(w, t) for w, t in zip(_TABLES_WANTED, (temperature, offset, weight), strict=True) if t is not None]
    conditions = [(w, t, t.isfinite() & (t > 0) if t is temperature else t.isfinite()) for w, t in given]
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
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")


def _culprit(value: Tensor, good: Tensor) -> str:
    index = tuple((~good).nonzero()[0].tolist())
    return f"{value[index].item()} at {list(index)}"
