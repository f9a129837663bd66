"""One thread a test process, since several run side by side; and no graph that an earlier run compiled."""

import os

os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE_DEFAULT"] = "0"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
