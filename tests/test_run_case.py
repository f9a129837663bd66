"""The entry that runs a case from outside: every backend as a process of its own, and what it says of bad input."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import uniclip_kernels
from tests import objective_cases
from tests.cases import BY_NAME, Case, make_case, mask_without
from tests.emulation.run_case import BACKENDS, KEYS, OBJECTIVES, run_case
from tests.evaluate import Result, assert_matches
from uniclip_kernels import reference

RAGGED = BY_NAME["mask-some-of-five"]
LOWER = torch.full((3, 3), torch.nan).tril(-1)  # must not be read
UNUSUAL = make_case(
    "run-unusual",
    150,
    33,
    samples=40,
    domains=3,
    padding=0.1,
    temperature=0.1 + LOWER + torch.eye(3) / 10,
    offset=0.2 + LOWER - torch.eye(3) / 2,
    domain_mask=mask_without(3, (0, 0), (1, 2)),
    reduction="sum",
    normalize=False,
)
GENERAL = [f"{objective}-everything" for objective in OBJECTIVES]
GENERAL += [
    "mp_nce-candidates-empty",
    "anchor-weight-sum",
    "exclusions-of-own-rows-alone",
    "sup_con-candidates-many-constant",
]
WITHIN_A_PROCESS = tuple(name for name in BACKENDS if name != "triton-interpreted")  # which needs one to itself


def arrays(case: Case, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """What in.npz holds."""
    k = case.num_domains
    ones = {key: torch.ones(k, k) for key in ("temperature", "weight", "offset")}
    given = {"domain_mask": torch.ones(k, k, dtype=torch.bool), "reduction": "mean", "normalize": True}
    given |= ones | case.options | {name: getattr(case, name) for name in ("embeddings", "sample_ids", "domain_ids")}
    if case.objective != "mp_nce":
        given["objective"] = case.objective
    if case.candidates is not None:
        given["candidates"] = case.candidates.embeddings
        given["candidates_require_grad"] = case.candidates.requires_grad
        for name in ("sample_ids", "domain_ids", "exclude_ids"):
            given[f"candidate_{name}"] = getattr(case.candidates, name)
    if isinstance(case.upstream, torch.Tensor) or case.upstream != 1:
        given["upstream"] = case.upstream
    given["dtype"] = str(dtype).removeprefix("torch.")
    return {key: np.asarray(value) for key, value in given.items() if value is not None}


def start(backend: str, given: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.emulation.run_case", "--backend", backend, given, out]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])


def through_files(backend: str, given: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    np.savez(folder / "in.npz", **given)
    done = start(backend, folder / "in.npz", folder / "out")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {"in.npz", "out"}
    with np.load(folder / "out") as out:
        return dict(out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_as_a_process(backend, tmp_path):
    out = through_files(backend, arrays(RAGGED, torch.bfloat16), tmp_path)
    assert all(values.dtype == np.float64 for values in out.values())
    assert_matches(Result(**out), RAGGED, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_key_differs_from_the_default(backend, dtype, tmp_path):
    given = arrays(UNUSUAL, dtype)
    out = run_case(backend, given) if backend in WITHIN_A_PROCESS else through_files(backend, given, tmp_path)
    assert_matches(Result(**out), UNUSUAL, dtype)


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("backend", WITHIN_A_PROCESS)
def test_few_rows_of_one_domain(backend, rows):
    case = make_case(f"run-{rows}", rows, 5, samples=1, domains=1, reduction="sum", normalize=False)
    assert_matches(Result(**run_case(backend, arrays(case, torch.float32))), case, torch.float32)


@pytest.fixture
def from_reference(monkeypatch):
    """The public functions, as far as they don't know all arguments yet."""
    for objective in OBJECTIVES:

        def public(*, backend, objective=objective, **arguments):
            assert backend == "reference"
            return getattr(reference, objective)(**arguments)

        monkeypatch.setattr(uniclip_kernels, objective, public, raising=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GENERAL)
def test_every_objective_and_argument(name, dtype, from_reference):
    case = objective_cases.BY_NAME[name]
    assert_matches(Result(**run_case("reference", arrays(case, dtype))), case, dtype)


def test_the_gradient_from_above_is_one_if_not_given(from_reference):
    given = arrays(objective_cases.BY_NAME["siglip-none"], torch.float32)
    ones = given | {"upstream": np.ones(90)}
    del given["upstream"]
    found, expected = run_case("reference", given), run_case("reference", ones)
    assert found["loss"].shape == (90,)
    assert all((found[key] == expected[key]).all() for key in expected)


def test_candidates_get_a_gradient_if_not_told_otherwise(from_reference):
    given = arrays(objective_cases.BY_NAME["sup_con-candidates"], torch.float32)
    del given["candidates_require_grad"]
    assert run_case("reference", given)["grad_candidates"].shape == (30, 24)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_is_named(key):
    case = arrays(RAGGED, torch.float32)
    del case[key]
    with pytest.raises(ValueError, match=f"lacks {key}"):
        run_case("reference", case)


def test_candidates_need_sample_ids_and_the_other_way_round():
    case = arrays(objective_cases.BY_NAME["sup_con-candidates"], torch.float32)
    with pytest.raises(ValueError, match="lacks candidate_sample_ids"):
        run_case("reference", {key: value for key, value in case.items() if key != "candidate_sample_ids"})
    with pytest.raises(ValueError, match="but no candidates"):
        run_case("reference", {key: value for key, value in case.items() if key != "candidates"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "float64"),
        ("reduction", "median"),
        ("objective", "clip"),
        ("exclude_ids", np.zeros(190)),
        ("anchor_weight", np.array(["a"])),
        ("upstream", np.ones(190)),
        ("normalize", "yes"),
        ("sample_ids", np.zeros(190)),
        ("sample_ids", np.full(190, 1 << 63, np.uint64)),
        ("domain_ids", np.full(190, 5)),
        ("embeddings", np.array(["a"])),
        ("embeddings", np.zeros(190)),
        ("temperature", np.zeros((5, 5))),
        ("offset", np.zeros((4, 4))),
        ("domain_mask", np.full((5, 5), 0.5)),
        ("domain_mask", np.full((5, 5), 2)),
    ],
)
def test_a_wrong_value_is_named(key, value):
    with pytest.raises((TypeError, ValueError), match=key):
        run_case("cpu", arrays(RAGGED, torch.float32) | {key: np.asarray(value)})


def test_other_arrays_of_the_same_values():
    case = arrays(RAGGED, torch.float32)
    other = {
        key: np.asfortranarray(case[key]).astype(">f8") for key in ("embeddings", "temperature", "offset", "weight")
    }
    other |= {key: case[key].astype(np.int8) for key in ("sample_ids", "domain_ids", "domain_mask", "normalize")}
    expected, got = run_case("cpu", case), run_case("cpu", case | other)
    assert all((got[key] == expected[key]).all() for key in expected)


def saved(save, *args, **options) -> bytes:
    file = io.BytesIO()
    save(file, *args, **options)
    return file.getvalue()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


NOT_CASES = {
    "empty": b"",
    "text": b"not a zip file",
    "one array": saved(np.save, np.zeros((2, 2))),
    "cut off": saved(np.savez, **arrays(RAGGED, torch.float32))[:-100],
    "damaged": flipped(saved(np.savez, embeddings=np.arange(1000.0)), 1000),
    "damaged, compressed": flipped(saved(np.savez_compressed, embeddings=np.arange(1000.0)), 200),
    "keys missing": saved(np.savez, embeddings=np.zeros((2, 2))),
    "objects": saved(np.savez, **arrays(RAGGED, torch.float32) | {"weight": np.array([None])}),
}


@pytest.mark.parametrize("content", NOT_CASES.values(), ids=NOT_CASES)
def test_failure_leaves_the_old_output(content, tmp_path):
    given, out = tmp_path / "in.npz", tmp_path / "out.npz"
    out.write_bytes(b"old")
    given.write_bytes(content)
    done = start("reference", given, out)
    assert done.returncode != 0
    assert done.stderr.startswith("run_case: ")
    assert done.stderr.count("\n") == 1
    assert out.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"in.npz", "out.npz"}
