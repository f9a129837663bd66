"""The competitors. Each takes a ``Batch`` and returns a step: one forward and backward pass, with its results."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..definitions import (
    expected_cross_entropy,
    expected_mp_nce,
    expected_products,
    expected_sigmoid,
    expected_with_queue,
)
from .fused import ours, ours_in_cuda, ours_nt_xent, ours_sigmoid, ours_sup_con, ours_with_queue_as_rows, replayed
from .packages import (
    inf_cl,
    lightly_nt_xent,
    memeff,
    metric_learning_nt_xent,
    metric_learning_sup_con,
    open_clip,
    open_clip_compiled,
    open_clip_sigmoid,
    sentence_transformers,
    siglip,
)
from .provider import OURS, OURS_IN_CUDA, Provider
from .provider import Step as Step
from .pytorch import (
    compiled,
    compiled_sup_con,
    eager,
    eager_nt_xent,
    eager_sup_con,
    eager_with_queue,
    floor,
    linear_cross_entropy,
    tuned,
    tuned_compiled,
)

QUEUE_AS_ROWS = "uniclip-kernels, queue as rows"
OURS_SIGMOID, FLOOR = f"{OURS} (sigmoid loss)", "torch.mm floor"
EAGER, COMPILED = "eager PyTorch", "torch.compile"
TUNED, TUNED_COMPILED = "eager, tuned for views", "torch.compile, tuned for views"
OPEN_CLIP, OPEN_CLIP_COMPILED = "open_clip ClipLoss", "torch.compile of ClipLoss"
LINEAR_CROSS_ENTROPY, INF_CL, MEMEFF = "linear_cross_entropy", "Inf-CL", "memeff"
SIGLIP, OPEN_CLIP_SIGMOID = "siglip-kernel (sigmoid loss)", "open_clip SigLipLoss (sigmoid loss)"
METRIC_LEARNING_SUP_CON = "pytorch-metric-learning SupConLoss"
METRIC_LEARNING_NT_XENT = "pytorch-metric-learning NTXentLoss"
LIGHTLY, SENTENCE_TRANSFORMERS = "lightly NTXentLoss", "sentence-transformers CachedMultipleNegativesRankingLoss"
_GPU_ONLY = {"cpu_dtypes": ()}
_BOTH = (torch.float32, torch.bfloat16)
_FP32 = {"gpu_dtypes": (torch.float32,)}  # their sums are of the rows' dtype
_GPU_BF16 = _GPU_ONLY | {"gpu_dtypes": (torch.bfloat16,)}  # they multiply float32 as TF32
_PAIRS = {"pairs_only": True}
_SIGMOID = {"mode": "forward+backward, sigmoid", "expected": expected_sigmoid}

PROVIDERS = (
    Provider(OURS, ours, ("MP-NCE", "InfoNCE"), 0, 1.5, _BOTH),
    Provider(OURS_IN_CUDA, ours_in_cuda, ("MP-NCE", "InfoNCE"), 0, 1.5, **_GPU_ONLY, module="uniclip_kernels._cuda"),
    Provider(EAGER, eager, ("MP-NCE",), 6, 6),
    Provider(OURS, ours, ("Queue",), 0, 1, _BOTH, expected=expected_with_queue),
    Provider(QUEUE_AS_ROWS, ours_with_queue_as_rows, ("Queue",), 0, 1, expected=expected_with_queue),
    Provider(EAGER, eager_with_queue, ("Queue",), 0.2, 0.3, expected=expected_with_queue),
    Provider(COMPILED, compiled, ("MP-NCE",), 4, 5),
    Provider(TUNED, tuned, ("MP-NCE",), 2, 3),
    Provider(TUNED_COMPILED, tuned_compiled, ("MP-NCE",), 2, 2),
    Provider(
        FLOOR,
        floor,
        ("MP-NCE",),
        0,
        1,
        _BOTH,
        mode="products",
        expected=expected_products,
        needs_small_batch=False,
    ),
    Provider(OPEN_CLIP, open_clip, ("InfoNCE",), 1.5, 2, **_PAIRS, module="open_clip"),
    Provider(OPEN_CLIP_COMPILED, open_clip_compiled, ("InfoNCE",), 1, 2, **_PAIRS, **_GPU_ONLY, module="open_clip"),
    Provider(
        LINEAR_CROSS_ENTROPY,
        linear_cross_entropy,
        ("InfoNCE",),
        0,
        1.5,
        expected=expected_cross_entropy,
        module="torch.nn:LinearCrossEntropyOptions",
    ),
    Provider(
        SENTENCE_TRANSFORMERS,
        sentence_transformers,
        ("InfoNCE",),
        0,
        2,
        **_PAIRS,
        **_FP32,
        module="sentence_transformers",
    ),
    Provider(INF_CL, inf_cl, ("InfoNCE",), 0, 3, **_PAIRS, **_GPU_BF16, module="inf_cl"),
    Provider(MEMEFF, memeff, ("InfoNCE",), 0, 3, **_PAIRS, **_GPU_BF16, module="memeff"),
    Provider(OURS_SIGMOID, ours_sigmoid, ("InfoNCE",), 0, 1.5, _BOTH, **_SIGMOID),
    Provider(OPEN_CLIP_SIGMOID, open_clip_sigmoid, ("InfoNCE",), 2, 2, **_PAIRS, **_SIGMOID, module="open_clip"),
    Provider(SIGLIP, siglip, ("InfoNCE",), 0, 1.5, **_PAIRS, **_GPU_BF16, **_SIGMOID, module="siglip_kernel"),
    Provider(OURS, ours_nt_xent, ("NT-Xent",), 0, 1.5, _BOTH),
    Provider(EAGER, eager_nt_xent, ("NT-Xent",), 5, 4, **_PAIRS),
    Provider(LIGHTLY, lightly_nt_xent, ("NT-Xent",), 4, 4, **_PAIRS, **_FP32, module="lightly"),
    Provider(
        METRIC_LEARNING_NT_XENT,
        metric_learning_nt_xent,
        ("NT-Xent",),
        4,
        4,
        **_FP32,
        expected=expected_mp_nce,
        module="pytorch_metric_learning",
        cubes=6.5,
    ),
    Provider(OURS, ours_sup_con, ("SupCon",), 0, 1.5, _BOTH),
    Provider(EAGER, eager_sup_con, ("SupCon",), 5, 4),
    Provider(COMPILED, compiled_sup_con, ("SupCon",), 1, 4),
    Provider(
        METRIC_LEARNING_SUP_CON,
        metric_learning_sup_con,
        ("SupCon",),
        12,
        12,
        **_FP32,
        module="pytorch_metric_learning",
    ),
)


#: The same steps where the host is the bottleneck.
REPLAYED = tuple(
    replace(p, name=f"{p.name}, CUDA graph", prepare=replayed(p.prepare), objectives=("MP-NCE",), keeps_memory=True)
    for p in PROVIDERS
    if p.name in (OURS, OURS_IN_CUDA, TUNED_COMPILED) and "MP-NCE" in p.objectives
)
