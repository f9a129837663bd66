"""The committed table of static facts is that of these sources, and the model in it holds what is promised."""

import csv

import pytest

from benchmarks import static_table
from tests.emulation.cuda import cubins

BACKENDS = [
    "triton",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(cubins.extension() is None, reason="uniclip_kernels._cuda was left out")
    ),
]


def committed() -> list[dict[str, str]]:
    with open(static_table.RESULTS / "static.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("arch", static_table.PARTS)
@pytest.mark.parametrize("kernel", static_table.KERNELS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_table_is_up_to_date(backend, kernel, arch):
    """At one D: run python -m benchmarks.static_table after a change of the kernels or of their compilers."""
    cells = static_table.row(backend, kernel, arch, 512).cells()
    assert cells in [list(row.values()) for row in committed()]
    assert f"| {' | '.join(cells)} |" in (static_table.RESULTS / "static.md").read_text()


def test_the_table_is_whole():
    rows = {(row["backend"], row["kernel"], row["sm"], int(row["d"])) for row in committed()}
    assert len(rows) == 2 * len(static_table.KERNELS) * len(static_table.PARTS) * len(static_table.COLUMNS)
    assert all(row["spilled_bytes"] == "0" for row in committed())


@pytest.mark.parametrize("arch", ["80", "90"])
@pytest.mark.parametrize("kernel", static_table.KERNELS)
def test_modelled_share_of_the_tensor_peak(kernel, arch):
    assert static_table.row("triton", kernel, arch, 512).share >= 0.65


def test_modelled_time_of_whole_steps_on_an_h100():
    rows = [
        static_table.row("triton", k, sm, d) for k in static_table.KERNELS for sm in ("80", "90") for d in (512, 768)
    ]
    mp_nce, _, clip = (float(line[-1]) for line in static_table.steps(rows)[:3])
    assert mp_nce <= 38
    assert clip <= 47


def test_the_model_sees_a_slow_epilogue(monkeypatch):
    monkeypatch.setattr(static_table, "_ISSUE", 1)
    assert static_table.row("triton", "forward", "90", 512).share < 0.5
