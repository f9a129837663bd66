"""One thread a test process, since several run side by side; and no graph that an earlier run compiled."""

import os

os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE_DEFAULT"] = "0"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def group(request):
    """How many ranks there are, and what runs functions on them."""
    from tests.ranks import ranks  # here, since some tests set the environment before they import the package

    with ranks(request.param) as run:
        yield request.param, run


@pytest.fixture(scope="module")
def pair():
    """Two ranks, likewise."""
    from tests.ranks import ranks

    with ranks(2) as run:
        yield run
