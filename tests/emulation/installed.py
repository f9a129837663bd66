"""Puts a backend that tests have made in the place of one of the package's."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

from uniclip_kernels import _backend


@contextlib.contextmanager
def installed(name: str, backend: _backend.Backend) -> Iterator[None]:
    """Make it the backend of that name, and fill torch.empty with NaN so that nothing unwritten is read unseen."""
    load = _backend._load
    with mock.patch.object(_backend, "_load", lambda asked: (backend, None) if asked == name else load(asked)):
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
