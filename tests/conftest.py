"""One thread a test process: several of them run side by side."""

import os

import pytest
import torch

torch.set_num_threads(1)

# Four minutes more, and they need a CUDA compiler: UNICLIP_TEST_CUDA=1 runs the CUDA kernels' emulation too.
collect_ignore_glob = [] if os.environ.get("UNICLIP_TEST_CUDA") == "1" else ["test_cuda_*.py"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
