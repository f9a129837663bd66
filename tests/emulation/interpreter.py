"""Repairs of Triton's interpreter, which multiplies the bits of bfloat16, truncates float32 to it, and is slow.

With them tl.dot sees the values of 16-bit operands and casts round to nearest even, so that bfloat16 can be
interpreted. What a GPU would do is proven elsewhere, by executing compiled code.
"""

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

_convert_float, _patch_lang = interpreter._convert_float, interpreter._patch_lang


@contextlib.contextmanager
def process() -> Iterator[Callable]:
    """Calls functions in a process of its own, since Triton decides at its import whether it interprets."""
    context = multiprocessing.get_context("spawn")
    environment = mock.patch.dict(os.environ, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    with environment, ProcessPoolExecutor(1, context) as pool:
        yield lambda function, *args, **options: pool.submit(function, *args, **options).result()


def repair() -> None:
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported")
    interpreter._convert_float = _convert
    interpreter.InterpreterBuilder.create_dot = _create_dot
    interpreter._patch_lang = _patch_for_good
    np.seterr(all="ignore")  # log2(0) and inf - inf are meant


@functools.cache
def _patch_for_good(function) -> interpreter._LangPatchScope:
    """Triton replaces its language at each call of each function; in a process that only interprets, once is enough."""
    _patch_lang(function)
    return interpreter._LangPatchScope()  # which has nothing to restore


def _convert(data: np.ndarray, source: tl.dtype, target: tl.dtype, rounding_mode) -> np.ndarray:
    if (source, target) == (tl.bfloat16, tl.float32):
        return _widen(data).view(np.uint32)
    if (source, target) == (tl.float32, tl.bfloat16):
        return torch.from_numpy(np.array(data)).bfloat16().view(torch.uint16).numpy()
    return _convert_float(data, source, target, rounding_mode)


def _widen(data: np.ndarray) -> np.ndarray:
    """float32 from the bits of bfloat16."""
    return (data.astype(np.uint32) << 16).view(np.float32)


def _create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    left, right = (
        _widen(x.data) if x.dtype.scalar == tl.bfloat16 else x.data.astype(d.data.dtype, copy=False) for x in (a, b)
    )
    return interpreter.TensorHandle(left @ right + d.data, d.dtype.scalar)
