"""The entry that runs a case from outside: every backend as a process of its own, and what it says of bad input."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cases import BY_NAME, Case, make_case
from tests.emulation.run_case import BACKENDS, KEYS, run_case
from tests.evaluate import Result, assert_matches

RAGGED = BY_NAME["mask-some-of-five"]
WITHIN_A_PROCESS = tuple(name for name in BACKENDS if name != "triton-interpreted")  # which needs one to itself


def arrays(case: Case, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """What in.npz holds."""
    k = case.num_domains
    given = case.options | {"embeddings": case.embeddings, "sample_ids": case.sample_ids, "domain_ids": case.domain_ids}
    given = {"domain_mask": torch.ones(k, k, dtype=torch.bool), "reduction": "mean", "normalize": True} | given
    given["dtype"] = str(dtype).removeprefix("torch.")
    return {key: np.asarray(value) for key, value in given.items()}


def start(backend: str, given: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.emulation.run_case", "--backend", backend, given, out]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_as_a_process(backend, tmp_path):
    np.savez(tmp_path / "in.npz", **arrays(RAGGED, torch.bfloat16))
    done = start(backend, tmp_path / "in.npz", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in.npz", "out"}
    with np.load(tmp_path / "out") as out:
        assert all(out[key].dtype == np.float64 for key in out)
        assert_matches(Result(**out), RAGGED, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("backend", WITHIN_A_PROCESS)
def test_other_dtypes(backend, dtype):
    assert_matches(Result(**run_case(backend, arrays(RAGGED, dtype))), RAGGED, dtype)


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("backend", WITHIN_A_PROCESS)
def test_few_rows_of_one_domain(backend, rows):
    case = make_case(f"run-{rows}", rows, 5, samples=1, domains=1, reduction="sum", normalize=False)
    assert_matches(Result(**run_case(backend, arrays(case, torch.float32))), case, torch.float32)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(key):
    case = arrays(RAGGED, torch.float32)
    del case[key]
    with pytest.raises(ValueError, match=f"lacks {key}"):
        run_case("reference", case)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "float64"),
        ("reduction", "none"),
        ("normalize", "yes"),
        ("sample_ids", np.zeros(190)),
        ("domain_ids", np.full(190, 5)),
        ("embeddings", np.array(["a"])),
        ("embeddings", np.zeros(190)),
        ("temperature", np.zeros((5, 5))),
        ("offset", np.zeros((4, 4))),
        ("domain_mask", np.full((5, 5), 0.5)),
    ],
)
def test_a_wrong_value_is_named(key, value):
    with pytest.raises((TypeError, ValueError), match=key):
        run_case("cpu", arrays(RAGGED, torch.float32) | {key: np.asarray(value)})


@pytest.mark.parametrize("content", [b"", b"not a zip file", None])
def test_failure_leaves_the_old_output(content, tmp_path):
    given, out = tmp_path / "in.npz", tmp_path / "out.npz"
    out.write_bytes(b"old")
    if content is None:
        np.savez(given, embeddings=np.zeros((2, 2)))
    else:
        given.write_bytes(content)
    done = start("reference", given, out)
    assert done.returncode != 0
    assert done.stderr.startswith("run_case: ")
    assert done.stderr.count("\n") == 1
    assert out.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.npz", "out.npz"}
