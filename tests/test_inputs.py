"""Every bad input gives an error of the right type that names the argument and says what it was, before any kernel runs."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

from uniclip_kernels import MPNCELoss, backends, domain_similarity, mil_nce, mp_nce, siglip, stack_views, sup_con

Z = torch.randn(6, 4)
IDS = torch.tensor([0, 0, 1, 1, 2, 2])
DOMAINS = torch.tensor([0, 1, 0, 1, 0, 1])
TABLE = torch.full((2, 2), 0.1)


def changed(index, value, table=TABLE):
    table = table.clone()
    table[index] = value
    return table


BAD = [
    # arguments that replace the good ones, error, what the message must contain
    ({"embeddings": Z.tolist()}, TypeError, "embeddings must be a tensor, got list"),
    ({"embeddings": Z.long()}, TypeError, "embeddings must be float32.*got torch.int64"),
    ({"embeddings": Z.to(torch.complex64)}, TypeError, "embeddings must be float32.*got torch.complex64"),
    ({"embeddings": Z[0]}, ValueError, r"embeddings must have shape .*got shape \(4,\)"),
    ({"embeddings": Z[None]}, ValueError, r"embeddings must have shape .*got shape \(1, 6, 4\)"),
    ({"embeddings": Z.to_sparse()}, TypeError, "embeddings must be a dense tensor, got torch.sparse_coo"),
    ({"embeddings": Z[:, :0]}, ValueError, r"embeddings must have D of at least 1, got shape \(6, 0\)"),
    ({"sample_ids": IDS.tolist()}, TypeError, "sample_ids must be an integer tensor, got list"),
    ({"sample_ids": IDS.float()}, TypeError, "sample_ids must be an integer tensor, got torch.float32"),
    ({"sample_ids": IDS.bool()}, TypeError, "sample_ids must be an integer tensor, got torch.bool"),
    (
        {"sample_ids": IDS.to(torch.uint32)},
        TypeError,
        "sample_ids must be int64, int32, int16, int8 or uint8, got torch.uint32",
    ),
    ({"domain_ids": DOMAINS.to(torch.uint64)}, TypeError, "domain_ids must be int64, .* or uint8, got torch.uint64"),
    ({"sample_ids": IDS.to_sparse()}, TypeError, "sample_ids must be a dense tensor, got torch.sparse_coo"),
    ({"sample_ids": IDS[:5]}, ValueError, r"sample_ids must have shape \(6,\).*got \(5,\)"),
    ({"sample_ids": IDS[:, None]}, ValueError, r"sample_ids must have shape \(6,\).*got \(6, 1\)"),
    ({"sample_ids": IDS.to("meta")}, ValueError, "sample_ids must be on the device of embeddings, cpu, got meta"),
    ({"domain_ids": DOMAINS.float()}, TypeError, "domain_ids must be an integer tensor, got torch.float32"),
    ({"domain_ids": DOMAINS[:5]}, ValueError, r"domain_ids must have shape \(6,\).*got \(5,\)"),
    ({"domain_ids": DOMAINS.to("meta")}, ValueError, "domain_ids must be on the device of embeddings, cpu, got meta"),
    ({"domain_ids": DOMAINS + 1}, ValueError, r"domain_ids must be in \[0, 2\), got 2 at \[1\]"),
    ({"domain_ids": DOMAINS - 1}, ValueError, r"domain_ids must be in \[0, 2\), got -1 at \[0\]"),
    ({"domain_ids": DOMAINS - 1, "temperature": 0.1}, ValueError, r"domain_ids must be in \[0, K\), got -1 at \[0\]"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"temperature": -0.1}, ValueError, "temperature must be positive and finite, got -0.1"),
    ({"temperature": math.inf}, ValueError, "temperature must be positive and finite, got inf"),
    ({"temperature": math.nan}, ValueError, "temperature must be positive and finite, got nan"),
    ({"temperature": 1e39}, ValueError, r"temperature must be finite in torch.float32, got 1e\+39"),
    ({"temperature": 1e-50}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"temperature": 10**400}, ValueError, "temperature must be finite in torch.float32, got 1000"),
    (
        {"temperature": torch.tensor(0.1, device="meta")},
        ValueError,
        "temperature must be on the device of the embeddings, cpu, got meta",
    ),
    ({"temperature": torch.tensor(0.0)}, ValueError, "temperature must be positive and finite, got 0.0"),
    (
        {"temperature": changed((0, 1), -1.0)},
        ValueError,
        r"temperature must be positive and finite, got -1.0 at \[0, 1\]",
    ),
    ({"temperature": changed((1, 1), math.nan)}, ValueError, r"temperature must be .*got nan at \[1, 1\]"),
    ({"temperature": TABLE[0]}, ValueError, r"temperature must have shape \(K, K\), got \(2,\)"),
    ({"temperature": TABLE.to_sparse()}, TypeError, "temperature must be a dense tensor, got torch.sparse_coo"),
    ({"temperature": torch.ones(2, 3)}, ValueError, r"temperature must have shape \(K, K\), got \(2, 3\)"),
    (
        {"temperature": torch.ones(2, 2).long()},
        TypeError,
        "temperature must be a floating-point tensor, got torch.int64",
    ),
    ({"temperature": "warm"}, TypeError, "temperature must be a number or a tensor, got str"),
    ({"temperature": None}, TypeError, "temperature must be a number or a tensor, got NoneType"),
    ({"weight": None}, TypeError, "weight must be a number or a tensor, got NoneType"),
    (
        {"temperature": TABLE.to("meta")},
        ValueError,
        "temperature must be on the device of the embeddings, cpu, got meta",
    ),
    ({"offset": torch.ones(3, 3)}, ValueError, r"offset must have the \(2, 2\) shape of temperature, got \(3, 3\)"),
    ({"offset": math.inf}, ValueError, "offset must be finite, got inf"),
    ({"offset": -1e39}, ValueError, r"offset must be finite in torch.float32, got -1e\+39"),
    ({"offset": changed((0, 1), math.nan)}, ValueError, r"offset must be finite, got nan at \[0, 1\]"),
    ({"weight": torch.ones(3, 3)}, ValueError, r"weight must have the \(2, 2\) shape of temperature, got \(3, 3\)"),
    ({"weight": changed((1, 0), math.inf)}, ValueError, r"weight must be finite, got inf at \[1, 0\]"),
    ({"domain_mask": TABLE}, TypeError, "domain_mask must be a bool tensor, got torch.float32"),
    ({"domain_mask": [[True, True], [True, True]]}, TypeError, r"domain_mask must be a \(K, K\) bool tensor, got list"),
    ({"domain_mask": torch.ones(3, 3).bool()}, ValueError, r"domain_mask must have the \(2, 2\) shape of temperature"),
    ({"domain_mask": torch.tensor(True)}, ValueError, r"domain_mask must have shape \(K, K\), got \(\)"),
    (
        {"domain_mask": torch.ones(2, 2).triu().bool()},
        ValueError,
        r"domain_mask must be symmetric, got True at \[0, 1\]",
    ),
    ({"reduction": "average"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'average'"),
    ({"reduction": None}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got None"),
    ({"backend": "gpu"}, ValueError, "backend must be one of 'triton', 'cuda', 'cpu', 'reference' or None, got 'gpu'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{next(iter(a))}-{m[-28:]}" for a, _, m in BAD])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_mp_nce_names_what_is_wrong(arguments, error, message, backend):
    good = {"embeddings": Z, "sample_ids": IDS, "domain_ids": DOMAINS, "temperature": TABLE, "backend": backend}
    mp_nce(**good)
    with pytest.raises(error, match=message):
        mp_nce(**{**good, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": Z[0]}, ValueError, "x must have shape"),
        ({"x": Z.int()}, TypeError, "x must be float32"),
        ({"y": Z[:, :3]}, ValueError, "y must have the D, dtype and device of x, 4, .*got 3"),
        ({"y": Z.double()}, ValueError, "y must have the D, dtype and device of x.*got 4, torch.float64"),
        ({"y": None, "y_domain_ids": DOMAINS}, ValueError, "y_domain_ids must be None when y is None"),
        ({"x_domain_ids": DOMAINS[:2]}, ValueError, r"x_domain_ids must have shape \(6,\)"),
        ({"y_domain_ids": DOMAINS + 1}, ValueError, r"y_domain_ids must be in \[0, 2\), got 2 at \[1\]"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive"),
        ({"offset": torch.ones(3, 3)}, ValueError, "offset must have the"),
        ({"backend": "cpu "}, ValueError, "backend must be one of"),
    ],
)
def test_domain_similarity_names_what_is_wrong(arguments, error, message):
    good = {"x": Z, "y": Z, "x_domain_ids": DOMAINS, "y_domain_ids": DOMAINS, "temperature": TABLE}
    domain_similarity(**good)
    with pytest.raises(error, match=message):
        domain_similarity(**{**good, **arguments})


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # nested tensors are to change
    NESTED = torch.nested.as_nested_tensor(list(Z), layout=torch.strided)
OF_NO_USE = [
    1j,
    np.complex64(1),
    b"1",
    {},
    {1: 2},
    object(),
    float,
    torch.float32,
    np.array(0.1),
    NESTED,
    Z.to_sparse(),
]
ROWS = [True, 2.5, "0.1", [0.1], Z.numpy(), Z > 0, Z.long(), Z * 1j, Z.to(torch.float8_e4m3fn), torch.tensor(0.1)]
NUMBERS = [True, 2, "0", [0, 1], DOMAINS.tolist(), DOMAINS.numpy(), DOMAINS > 0, DOMAINS.float(), DOMAINS * 1j]
TABLES = [None, True, np.bool_(True), "0.1", [0.1], TABLE.tolist(), TABLE.numpy(), TABLE > 0, TABLE.long(), TABLE * 1j]
TABLES += [torch.ones(0, 0), 10**400, math.nan]
FLOOR = [None, True, np.bool_(True), "0.1", [0.1], torch.tensor(0.1), 0, -1.0, math.nan, math.inf, 10**400]
SWITCH = [None, 0, 1, 1.0, "True", [True], np.bool_(True), torch.tensor(True)]
WORD = [True, 1, 2.5, "", "average", ["mean"], np.array(["mean", "sum"]), torch.ones(2)]
WRONG = {  # for each argument what it does not take
    **dict.fromkeys(("embeddings", "candidates", "x", "y"), ROWS),
    **dict.fromkeys(("sample_ids", "domain_ids", "exclude_ids", "x_domain_ids", "y_domain_ids"), NUMBERS),
    **dict.fromkeys(("candidate_sample_ids", "candidate_domain_ids", "candidate_exclude_ids"), NUMBERS),
    "anchor_weight": [True, 2.5, "0.1", [0.1], Z[:, 0].numpy(), Z[:, 0] > 0, IDS, Z[:, 0] * 1j, Z, -torch.ones(len(Z))],
    "process_group": [True, 0, "nccl", [0], torch.tensor(0)],
    **dict.fromkeys(("temperature", "offset", "weight"), TABLES),
    "domain_mask": [True, 1, "1", [[True] * 2] * 2, (TABLE > 0).numpy(), TABLE, TABLE.long(), TABLE * 1j],
    **dict.fromkeys(("normalize", "learnable"), SWITCH),
    **dict.fromkeys(("reduction", "backend", "communication", "gradient_reduction"), WORD),
    "num_domains": [None, True, 2.0, "2", [2], np.float32(2), torch.tensor(2), 0, -1],
    "min_temperature": FLOOR,
    "views": [None, True, 2.5, "ab", [None] * 2, [0.1] * 2, ["a", "b"], Z.numpy(), Z, torch.tensor(0.1)],
    "domains": [None, True, 2, "01", [0], [0.0, 1.0], [True, False], [None] * 2, ["0", "1"], [0, -1], torch.tensor(0)],
}
TABLE_ARGUMENTS = dict(temperature=TABLE, offset=TABLE, weight=TABLE, domain_mask=TABLE > 0)
LAST = dict(reduction="sum", normalize=True, backend=None)
LAST |= dict(process_group=None, communication="ring", gradient_reduction="sum")
OF_ROWS = dict(embeddings=Z, sample_ids=IDS, domain_ids=DOMAINS, exclude_ids=IDS, anchor_weight=torch.ones(len(Z)))
OF_ROWS |= dict(candidates=Z, candidate_sample_ids=IDS, candidate_domain_ids=DOMAINS, candidate_exclude_ids=IDS)
OF_SIMILARITY = dict(x=Z, y=Z, x_domain_ids=DOMAINS, y_domain_ids=DOMAINS, temperature=TABLE, offset=0.1)
GOOD = {
    mp_nce: dict(**OF_ROWS, **TABLE_ARGUMENTS, **LAST),
    domain_similarity: dict(**OF_SIMILARITY, normalize=True, backend=None),
    MPNCELoss: dict(num_domains=2, **TABLE_ARGUMENTS, learnable=True, min_temperature=0.01, **LAST),
    MPNCELoss(): OF_ROWS,
    stack_views: dict(views=[Z, Z], domains=np.array([0, 1])),
}


@pytest.mark.parametrize(
    ("function", "argument"), [(function, name) for function, good in GOOD.items() for name in good]
)
def test_wrong_types_of_every_argument_are_named(function, argument):
    good = GOOD[function]
    function(**good)
    for value in [*WRONG[argument], *OF_NO_USE]:
        with pytest.raises((TypeError, ValueError), match=rf"^{argument}\b.* must .*, got "):
            function(**{**good, argument: value})


REAL = [np.float32(0.5), np.float64(0.5), np.float16(0.5), Fraction(1, 2), 1, np.int64(1), np.uint8(1)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", REAL, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_numbers_of_any_type(number, backend):
    """NumPy's too, in the functions and in the module alike."""
    names, rows = ("temperature", "offset", "weight"), (Z, IDS, DOMAINS)
    given, expected = dict.fromkeys(names, number), dict.fromkeys(names, float(number))
    loss = mp_nce(*rows, **expected, backend=backend)
    assert torch.equal(mp_nce(*rows, **given, backend=backend), loss)
    criterion = MPNCELoss(**given, min_temperature=number, backend=backend)
    torch.testing.assert_close(criterion(*rows), loss)
    del given["weight"], expected["weight"]
    assert torch.equal(*(domain_similarity(Z, **options, backend=backend) for options in (given, expected)))


@pytest.mark.parametrize("num_domains", [1, 2, 40])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_domain_of_padding_does_not_matter(backend, num_domains):
    m, options = 120, dict(backend=backend, offset=0.1)
    tau = torch.rand(num_domains, num_domains) + 0.1
    ids, domains = torch.arange(m) // 3, torch.arange(m) % num_domains
    ids[::5] = torch.tensor([-1, -7, -(2**63)]).repeat(8)
    z = torch.randn(m, 8, requires_grad=True)
    expected = mp_nce(z, ids, domains, temperature=tau, **options)
    for domain in (-1, num_domains, num_domains + 5, 2**40, -(2**63)):
        others = domains.where(ids >= 0, domain)
        loss = mp_nce(z, ids, others, temperature=tau, **options)
        assert torch.equal(loss, expected)
        assert torch.equal(*(torch.autograd.grad(x, z, retain_graph=True)[0] for x in (loss, expected)))


def test_float64_is_for_the_cpu():
    meta = Z.double().to("meta")
    with pytest.raises(TypeError, match="embeddings in float64 is supported on the CPU only"):
        mp_nce(meta, IDS.to("meta"))


def test_a_backend_that_cannot_run_says_why():
    reasons = backends()
    assert reasons["cpu"] is None
    assert reasons["reference"] is None
    for name, reason in reasons.items():
        if reason is not None:
            with pytest.raises(ValueError, match=f"backend '{name}' is not usable here: "):
                mp_nce(Z, IDS, backend=name)


def test_value_checks_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("UNICLIP_CHECK_VALUES", "0")
    mp_nce(Z, IDS, temperature=torch.tensor(-1.0))  # whatever it gives, no error


IDS_5 = torch.arange(5)
CANDIDATES = {"candidates": torch.randn(5, 4), "candidate_sample_ids": IDS_5}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"exclude_ids": IDS.float()}, TypeError, "exclude_ids must be an integer tensor, got torch.float32"),
        (
            {"exclude_ids": IDS[:5]},
            ValueError,
            r"exclude_ids must have shape \(6,\), one for each row of embeddings, got \(5,\)",
        ),
        (
            {"exclude_ids": torch.tensor([0, 1, 2, 2, 3, 3])},
            ValueError,
            "exclude_ids .* must be the same for all rows of a sample",
        ),
        (
            CANDIDATES | {"exclude_ids": IDS * 0 + 1, "candidate_exclude_ids": IDS_5 * 0},
            ValueError,
            "must be the same for all rows",
        ),
        (CANDIDATES | {"exclude_ids": IDS * 0 + 1}, ValueError, "must be the same for all rows of a sample"),
        ({"anchor_weight": 0.5}, TypeError, "anchor_weight must be a floating-point tensor, got float"),
        ({"anchor_weight": IDS}, TypeError, "anchor_weight must be a floating-point tensor, got torch.int64"),
        ({"anchor_weight": torch.ones(5)}, ValueError, r"anchor_weight must have shape \(6,\).*got \(5,\)"),
        (
            {"anchor_weight": -torch.ones(6)},
            ValueError,
            r"anchor_weight must be non-negative and finite, got -1.0 at \[0\]",
        ),
        (
            {"anchor_weight": torch.ones(6) / 0},
            ValueError,
            r"anchor_weight must be non-negative and finite, got inf at \[0\]",
        ),
        ({"candidates": Z}, ValueError, "candidate_sample_ids must be given with candidates, got None"),
        ({"candidates": Z.tolist(), "candidate_sample_ids": IDS}, TypeError, "candidates must be a tensor, got list"),
        (
            CANDIDATES | {"candidates": torch.ones(5, 3)},
            ValueError,
            "candidates must have the D, dtype and device of embeddings, 4",
        ),
        (
            CANDIDATES | {"candidates": torch.ones(5, 4).half()},
            ValueError,
            "candidates must have the D, dtype and device.*float16",
        ),
        (
            CANDIDATES | {"candidate_sample_ids": IDS},
            ValueError,
            r"candidate_sample_ids must have shape \(5,\), one for each row of candidates",
        ),
        (
            CANDIDATES | {"candidate_domain_ids": IDS_5},
            ValueError,
            r"candidate_domain_ids must be in \[0, 2\), got 2 at \[2\]",
        ),
        ({"candidate_sample_ids": IDS}, ValueError, "candidate_sample_ids must be None where there are no candidates"),
        ({"candidate_domain_ids": IDS}, ValueError, "candidate_domain_ids must be None where there are no candidates"),
        (
            {"candidate_exclude_ids": IDS},
            ValueError,
            "candidate_exclude_ids must be None where there are no candidates",
        ),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("objective", [mp_nce, sup_con, mil_nce, siglip])
def test_objectives_name_what_is_wrong(objective, arguments, error, message, backend):
    good = {"embeddings": Z, "sample_ids": IDS, "domain_ids": DOMAINS, "temperature": TABLE, "backend": backend}
    objective(**good)
    with pytest.raises(error, match=message):
        objective(**{**good, **arguments})
