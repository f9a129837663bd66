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
import torch.distributed as dist
from torch import Tensor
from torch._C._functorch import is_gradtrackingtensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.forward_ad import unpack_dual

from ._problem import Inputs, Options, SimilarityInputs, accumulator_dtype

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


def check_same_kind(name: str, z: Tensor, rows_name: str, rows: Tensor) -> None:
    if z.shape[1] != rows.shape[1] or z.dtype != rows.dtype or z.device != rows.device:
        raise ValueError(
            f"{name} must have the D, dtype and device of {rows_name}, {rows.shape[1]}, {rows.dtype}, {rows.device}, "
            f"got {z.shape[1]}, {z.dtype}, {z.device}"
        )


def check_ids(rows_name: str, rows: Tensor, *, optional: bool = False, **given: Tensor | None) -> None:
    """One integer for each of the rows; None only if ``optional``."""
    for name, ids in given.items():
        if ids is None and optional:
            continue
        if not isinstance(ids, Tensor):
            raise TypeError(f"{name} must be an integer tensor, got {type(ids).__name__}")
        _check_dense(name, ids)
        if ids.dtype in _UNSIGNED:
            raise TypeError(f"{name} must be int64, int32, int16, int8 or uint8, got {ids.dtype}")
        if ids.dtype not in _INTEGERS:
            raise TypeError(f"{name} must be an integer tensor, got {ids.dtype}")
        _check_one_each(name, ids, rows_name, rows)


def check_anchor_weight(weight: Tensor, embeddings: Tensor, sample_ids: Tensor) -> None:
    """Its type, and its values, but for those of padding: while a graph is made, by an assertion in it."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"anchor_weight must be a floating-point tensor, got {type(weight).__name__}")
    _check_dense("anchor_weight", weight)
    if not weight.is_floating_point():
        raise TypeError(f"anchor_weight must be a floating-point tensor, got {weight.dtype}")
    _check_one_each("anchor_weight", weight, "embeddings", embeddings)
    if not values_are_checked():
        return
    good = (weight >= 0) & weight.isfinite() | (sample_ids < 0)
    if torch.compiler.is_compiling() or weight.device.type == "cuda":
        torch._assert_async(good.all(), f"uniclip_kernels: {_ANCHORS_WANTED}")
    elif has_values(weight):
        _raise_first([(_ANCHORS_WANTED, weight, good)])


def _check_one_each(name: str, values: Tensor, rows_name: str, rows: Tensor) -> None:
    if values.ndim != 1 or values.shape[0] != rows.shape[0]:
        raise ValueError(
            f"{name} must have shape ({rows.shape[0]},), one for each row of {rows_name}, got {tuple(values.shape)}"
        )
    if values.device != rows.device:
        raise ValueError(f"{name} must be on the device of {rows_name}, {rows.device}, got {values.device}")


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


def check_process_group(group: Any) -> None:
    if not (group is None or (dist.is_available() and isinstance(group, dist.ProcessGroup))):
        raise TypeError(f"process_group must be a torch.distributed.ProcessGroup, got {type(group).__name__}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def is_integer(value: Any) -> bool:
    """A Python or NumPy integer, but no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_reduction(reduction: str) -> None:
    check_choice("reduction", reduction, REDUCTIONS)


def check_reverse_mode(function: str, *inputs: Tensor) -> None:
    """The operators know no forward-mode derivative, which PyTorch would call zero without a word, and none of torch.func."""
    if any(unpack_dual(z).tangent is not None for z in inputs):
        raise RuntimeError(f"{function} has no forward-mode derivative (jvp): call it with backend='reference' for one")
    if not torch.compiler.is_compiling() and any(is_gradtrackingtensor(z) for z in inputs):
        raise RuntimeError(f"{function} has no torch.func.grad: call it with backend='reference' for one")


def values_are_checked() -> bool:
    return os.environ.get("UNICLIP_CHECK_VALUES") != "0"


def has_values(tensor: Tensor) -> bool:
    """Not so on the meta device, nor of the fake tensors that shapes are found with."""
    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


def values_wanted(inputs: Inputs, options: Options) -> str:
    """What an assertion on a device says, which knows only that one of these is not so."""
    k = None if options.ignore_domains else inputs.temperature.shape[0]
    given = [n for n in ("domain_ids", "candidate_domain_ids") if getattr(inputs, n) is not None]
    wanted = [*_TABLES_WANTED, *[_MASK_WANTED] * (inputs.domain_mask is not None), *(_ids_wanted(n, k) for n in given)]
    if inputs.exclude_ids is not None or inputs.candidate_exclude_ids is not None:
        wanted.append(_EXCLUSION_WANTED)
    return "uniclip_kernels: " + "; ".join(wanted)


def check_values(inputs: Inputs, options: Options) -> None:
    """Of an objective's tensors."""
    k = None if options.ignore_domains else inputs.temperature.shape[0]
    conditions = _of_tables(inputs.temperature, inputs.offset, inputs.weight, inputs.domain_mask)
    for name in ("domain_ids", "candidate_domain_ids"):
        if (ids := getattr(inputs, name)) is not None:
            padding = getattr(inputs, name.replace("domain", "sample")) < 0
            conditions.append(_of_domain_ids(name, ids, k, padding))
    if inputs.exclude_ids is not None or inputs.candidate_exclude_ids is not None:
        shared = shares_exclusion(inputs)
        conditions.append((_EXCLUSION_WANTED, shared, shared))
    _require(conditions, inputs.temperature)


def check_similarity_values(inputs: SimilarityInputs, ignore_domains: bool) -> None:
    k = None if ignore_domains else inputs.temperature.shape[0]
    conditions = _of_tables(inputs.temperature, inputs.offset, None, None)
    for name in ("x_domain_ids", "y_domain_ids"):
        if (ids := getattr(inputs, name)) is not None:
            conditions.append(_of_domain_ids(name, ids, k, None))
    _require(conditions, inputs.temperature)


def shares_exclusion(inputs: Inputs) -> Tensor:
    """(1,) bool: whether all rows of each sample have one exclusion id, any negative one counting as none."""
    parts = [(inputs.sample_ids, inputs.exclude_ids)]
    if inputs.candidate_sample_ids is not None:
        parts.append((inputs.candidate_sample_ids, inputs.candidate_exclude_ids))
    samples = torch.cat([s.long() for s, _ in parts])
    excluded = torch.cat(
        [torch.full_like(s, -1, dtype=torch.long) if e is None else e.long().clamp(min=-1) for s, e in parts]
    )
    samples, order = samples.sort()
    excluded = excluded[order]
    apart = (samples[1:] == samples[:-1]) & (samples[1:] >= 0) & (excluded[1:] != excluded[:-1])
    return ~apart.any()[None]


def check_tables_now(temperature: Tensor, offset: Tensor, weight: Tensor, domain_mask: Tensor | None) -> None:
    """Whatever the environment says, and waiting for devices: for what is checked once. Those without values pass."""
    tables = temperature, offset, weight, domain_mask
    _raise_first(_of_tables(*(t.cpu() if t is not None and has_values(t) else None for t in tables)))


_TABLES_WANTED = "temperature must be positive and finite", "offset must be finite", "weight must be finite"
_MASK_WANTED = "domain_mask must be symmetric"
_EXCLUSION_WANTED = (
    "exclude_ids and candidate_exclude_ids (None: no row has one) must be the same for all rows of a sample"
)
_ANCHORS_WANTED = "anchor_weight must be non-negative and finite"
_Condition = tuple[str, Tensor, Tensor]  # what must hold, of which tensor, where it does


def _of_tables(
    temperature: Tensor | None, offset: Tensor | None, weight: Tensor | None, domain_mask: Tensor | None
) -> list[_Condition]:
    given = [(w, t) for w, t in zip(_TABLES_WANTED, (temperature, offset, weight), strict=True) if t is not None]
    conditions = [(w, t, t.isfinite() & (t > 0) if t is temperature else t.isfinite()) for w, t in given]
    if domain_mask is not None:
        conditions.append((_MASK_WANTED, domain_mask, domain_mask == domain_mask.T))
    return conditions


def _of_domain_ids(name: str, ids: Tensor, num_domains: int | None, padding: Tensor | None) -> _Condition:
    """``num_domains`` is None where K does not matter; nor do the domains of padding."""
    top = math.inf if num_domains is None else num_domains
    inside = (ids >= 0) & (ids.long() < top)  # K itself may not fit the type of the ids
    return _ids_wanted(name, num_domains), ids, inside if padding is None else inside | padding


def _ids_wanted(name: str, num_domains: int | None) -> str:
    return f"{name} must be in [0, {'K' if num_domains is None else num_domains})"


def _require(conditions: list[_Condition], like: Tensor) -> None:
    if not values_are_checked() or not has_values(like):
        return
    if like.device.type != "cpu":
        fused = torch.stack([good.all() for _, _, good in conditions]).all()
        torch._assert_async(fused, "uniclip_kernels: " + "; ".join(message for message, _, _ in conditions))
        return
    _raise_first(conditions)


def _raise_first(conditions: list[_Condition]) -> None:
    for message, value, good in conditions:
        if not good.all():
            raise ValueError(message if value is good else f"{message}, got {_culprit(value, good)}")


def _check_dense(name: str, value: Tensor) -> None:
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested one")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")


def _culprit(value: Tensor, good: Tensor) -> str:
    index = tuple((~good).nonzero()[0].tolist())
    return f"{value[index].item()} at {list(index)}"
