"""The benchmarks refuse wrong answers, see the memory that a step takes, and say what they did not measure."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("matplotlib")

from benchmarks import definitions, ratios
from benchmarks import measure as measuring
from benchmarks import ranks as over_ranks
from benchmarks.definitions import expected
from benchmarks.devices import CPU
from benchmarks.dry_run import DryRun
from benchmarks.measure import CHECKED_SAMPLES, WrongAnswerError, check_on_few, repeat_interleaved
from benchmarks.plot import plot
from benchmarks.problems import VIEWS, make_batch
from benchmarks.providers import (
    COMPILED,
    EAGER,
    FLOOR,
    OURS,
    PROVIDERS,
    TUNED_COMPILED,
    Provider,
    floor,
    ours,
)
from benchmarks.providers.pytorch import FLOOR_PANEL
from benchmarks.report import write_report, write_tables
from benchmarks.rows import Row, merge, read_rows, write_rows
from benchmarks.run import main
from benchmarks.session import OurError, measure, missing

CASES = [
    pytest.param(provider, objective, dtype, id=f"{provider.name}-{objective}-{dtype}")
    for provider in PROVIDERS
    if provider.name
    not in (COMPILED, TUNED_COMPILED)  # minutes of compilation; their functions are those of two others
    for objective in provider.objectives
    for dtype in provider.dtypes("cpu")
]
MEGABYTES = 64


def row(**changes) -> Row:
    values = {
        "device": "cpu",
        "objective": "MP-NCE",
        "provider": OURS,
        "mode": "forward+backward",
        "n": 4096,
        "m": 12288,
        "d": 512,
        "dtype": "float32",
        "p20": 0.9,
        "p50": 1.0,
        "p80": 1.5,
        "repetitions": 5,
        "extra_bytes": 10**7,
        "note": "",
        "machine": "a machine",
        "version": "a version",
        "run": "2026-01-01T00:00:00+00:00",
    }
    return Row(**values | changes)


def provider_named(name: str) -> Provider:
    return next(p for p in PROVIDERS if p.name == name)


def planted(change, name="planted") -> Provider:
    return Provider(name, change, ("MP-NCE", "InfoNCE"), 0, 1, gpu_dtypes=(torch.float32,))


def wrong_loss(batch):
    return lambda: [ours(batch)()[0] * 1.001, *expected(batch)[1:]]


def wrong_gradient(batch):
    def step():
        loss, gradient, *others = ours(batch)()
        gradient[7, 3] += 0.01 * gradient.abs().max()
        return [loss, gradient, *others]

    return step


def not_a_number(batch):
    return lambda: [torch.full_like(t, torch.nan) for t in ours(batch)()]


def no_table_gradients(batch):
    return lambda: ours(batch)()[:2]


def wrong_when_large(batch):
    return wrong_loss(batch) if batch.samples > CHECKED_SAMPLES else ours(batch)


def raises(batch):
    raise KeyError("its own fault")


def hungry(batch):
    def step():
        torch.ones(MEGABYTES << 18)
        return ours(batch)()

    return step


@pytest.mark.parametrize(("provider", "objective", "dtype"), CASES)
def test_providers_are_right(provider, objective, dtype):
    if reason := missing(provider.module):
        pytest.skip(reason)
    check_on_few(provider, objective, 40, 32, dtype, "cpu")


@pytest.mark.parametrize("wrong", [wrong_loss, wrong_gradient, not_a_number, no_table_gradients])
def test_a_wrong_provider_is_refused(wrong):
    with pytest.raises(WrongAnswerError):
        check_on_few(planted(wrong), "MP-NCE", 40, 32, torch.float32, "cpu")


def test_the_floor_multiplies():
    batch = make_batch("MP-NCE", FLOOR_PANEL // 3 + 10, 24, torch.float32)  # more rows than a panel
    z = batch.embeddings.detach()
    torch.testing.assert_close(floor(batch)(), [z @ z.T @ z], rtol=1e-4, atol=1e-3)


def test_long_steps_are_run_once(monkeypatch):
    monkeypatch.setattr(measuring, "LONG_STEP", 10.0)
    monkeypatch.setattr(measuring, "FEWEST_ROUNDS", 3)
    runs = []

    def timed(step):
        runs.append(step())
        return 1.0, []

    times = repeat_interleaved({"a": lambda: "a", "b": lambda: "b"}, {"a": 1.0, "b": 11.0}, timed, seconds=0.0)
    assert times == {"a": [1.0, 1.0, 1.0], "b": [11.0]}
    assert runs == ["a", "a", "a"]


def test_only_right_answers_are_measured():
    large = planted(wrong_when_large, "wrong when large")
    too_large = dataclasses.replace(planted(ours, "too large"), matrices=1e9)
    right = planted(ours, "right")
    n = CHECKED_SAMPLES + 1
    broken = planted(raises, "broken")
    elsewhere = dataclasses.replace(right, name="elsewhere", module="no_such_package.module")
    rows = measure("InfoNCE", n, 8, DryRun(), 0.1, 1e9, "now", (right, large, too_large, broken, elsewhere))
    by_name = {row.provider: row for row in rows}
    assert by_name["right"].p20 <= by_name["right"].p50 <= by_name["right"].p80
    assert (by_name["right"].m, by_name["right"].note) == (2 * n, "")
    assert by_name["wrong when large"].note.startswith("refused: tensor 0 is")
    assert by_name["too large"].note.startswith("needs about")
    assert by_name["broken"].note == "failed: KeyError: 'its own fault'"
    assert by_name["elsewhere"].note == "no_such_package.module is not installed"
    for name in ("wrong when large", "too large", "broken", "elsewhere"):
        assert (by_name[name].p50, by_name[name].extra_bytes) == (None, None)


@pytest.mark.parametrize("objective", [objective for objective in VIEWS if objective != "Queue"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_right_answer_to_a_large_problem(objective, dtype, monkeypatch):
    monkeypatch.setattr(definitions, "PANEL", 1000)
    batch = make_batch(objective, 40, 24, dtype)
    tolerance = 1e-12 if dtype == torch.float32 else 1e-5
    for got, right in zip(definitions.expected_when_large(batch), expected(batch), strict=True):
        if right.shape == (2, 2):
            got, right = (t.triu() + t.tril(-1).T for t in (got, right))
        torch.testing.assert_close(got.double(), right, rtol=tolerance, atol=tolerance * right.abs().max().item())


def test_our_own_crash_is_not_a_note():
    with pytest.raises(OurError, match="KeyError: 'its own fault'"):
        measure("InfoNCE", 8, 8, DryRun(), 0.1, 1e9, "now", (planted(raises, OURS),))


def test_ours_is_not_the_standard_where_another_ran(monkeypatch):
    monkeypatch.setattr(DryRun, "fast", False)
    n = CHECKED_SAMPLES + 1
    providers = planted(wrong_when_large, OURS), planted(ours, "right")
    by_name = {row.provider: row for row in measure("MP-NCE", n, 8, DryRun(), 0.0, 1e9, "now", providers)}
    assert by_name[OURS].refused
    assert not by_name["right"].note


def test_extra_memory_is_what_a_step_takes():
    extra = CPU().extra_memory(planted(hungry), "MP-NCE", 16, 8, torch.float32)
    assert MEGABYTES - 1 < extra / 2**20 < MEGABYTES + 16  # the kernel counts in lots of some pages


def test_rows_survive_the_file(tmp_path):
    rows = [
        row(),
        row(n=8192, p20=None, p50=None, p80=None, extra_bytes=None, repetitions=0, note="needs 9 GiB, 1 is free"),
    ]
    write_rows(tmp_path / "cpu.csv", rows)
    assert read_rows(tmp_path / "cpu.csv") == rows
    newer = row(p50=0.95, run="2026-01-02T00:00:00+00:00")
    assert merge(rows, [newer]) == [newer, rows[1]]


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(8.1, "aim reached"), (4.1, "holds"), (3.9, "MISSED"), (None, "not measured")]
)
def test_verdicts(seconds, verdict):
    rows = [row(), *([] if seconds is None else [row(provider=EAGER, p50=seconds)])]
    assert _result(rows, "eager PyTorch reference / ours").verdict == verdict


def test_who_was_wrong_anywhere_is_compared_nowhere():
    rows = [
        row(),
        row(provider=EAGER, p50=4.1),
        row(n=256, dtype="bfloat16", p50=None, note="refused: tensor 0 is 1 at 0, not 2"),
    ]
    for what in ("eager PyTorch reference / ours", "4M²D flops by torch.mm / ours"):
        result = _result(rows, what)
        assert (result.measured, result.verdict) == ("—", "REFUSED: a wrong answer was given")


def test_what_is_not_measured_says_why():
    rows = [row(), row(provider=EAGER, p50=None, note="needs about 9 GiB, 1 are free")]
    verdict = _result(rows, "eager PyTorch reference / ours").verdict
    assert verdict == "not measured: needs about 9 GiB, 1 are free"


def test_requirements_on_a_gpu():
    gpu = {
        "device": "cuda",
        "dtype": "bfloat16",
        "n": ratios.GPU_N,
        "m": 3 * ratios.GPU_N,
        "extra_bytes": 1_400_000_000,
    }
    rows = [row(**gpu, p50=0.02), row(**gpu, provider=EAGER, p50=0.04), row(**gpu, provider=FLOOR, p50=0.015)]
    assert _result(rows, "eager PyTorch reference / ours").verdict == "MISSED"
    assert _result(rows, "torch.compile of that / ours, bf16").verdict == "not measured"
    floor = _result(rows, "4M²D flops by torch.mm / ours")
    assert (floor.measured, floor.verdict) == ("0.75 (15 ms / 20 ms; 440 TFLOP/s of 586 TFLOP/s)", "holds")
    assert _result(rows, "extra peak memory").verdict == "holds"
    assert _result([row(**gpu | {"extra_bytes": 1_500_000_001})], "extra peak memory").verdict == "MISSED"


def test_times_of_different_runs_are_not_compared():
    rows = [row(), row(provider=EAGER, p50=4.1, run="2026-01-02T00:00:00+00:00")]
    assert _result(rows, "eager PyTorch reference / ours").verdict == "not measured"


def test_small_batches_must_not_pay():
    rows = [row(n=256, m=768, p50=0.6), row(n=256, m=768, provider=EAGER)]
    result = _result(rows, "ours / eager PyTorch reference")
    assert (result.verdict, result.required) == ("holds", "≤ 0.7")


def test_memory_verdicts():
    sizes = {n: 3 * 3 * n * 512 * 4 for n in (4096, 8192, 16384, 32768)}
    straight = [row(n=n, m=3 * n, extra_bytes=b + 3 * 10**7) for n, b in sizes.items()]
    assert [r.verdict for r in ratios.results(straight)[-2:]] == ["aim reached", "aim reached"]
    bent = [dataclasses.replace(r, extra_bytes=r.n * r.n // 2) for r in straight]
    assert [r.verdict for r in ratios.results(bent)[-2:]] == ["aim reached", "holds"]
    assert _result([row(extra_bytes=10**9)], "extra peak memory").verdict == "MISSED"


def test_report_and_plots_need_the_file_alone(tmp_path):
    missing = {
        "p20": None,
        "p50": None,
        "p80": None,
        "extra_bytes": None,
        "repetitions": 0,
        "note": "needs about 77 GiB, 20 are free",
    }
    times = [row(n=n, m=3 * n, p50=n / 1e3) for n in (256, 512)]
    write_rows(
        tmp_path / "cpu.csv", [*times, row(provider=EAGER, n=512, m=1536, **missing), row(provider=FLOOR, n=256)]
    )
    text = write_report(tmp_path / "cpu.csv")
    assert "| 512 | 512 ms (900 to 1500), 10 MB | — | — |" in text
    assert "* — eager PyTorch, fp32, at N = 512: needs about 77 GiB, 20 are free" in text
    assert text == (tmp_path / "cpu.md").read_text()
    written = plot(tmp_path / "cpu.csv")
    assert sorted(p.name for p in written) == ["cpu_mp_nce.png", "cpu_mp_nce.svg"]
    assert (tmp_path / "cpu_mp_nce.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_gets_headlines_and_the_docs_get_tables_and_plots(tmp_path):
    readme, page, results = tmp_path / "README.md", tmp_path / "docs" / "page.md", tmp_path / "benchmarks"
    page.parent.mkdir()
    for path in (readme, page):
        path.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    write_rows(results / "cpu.csv", [row(), row(provider=EAGER, p50=4.1)])
    for _ in range(2):  # the second time it replaces its own
        write_tables(readme, page, results)
    for path in (readme, page):
        text = path.read_text()
        assert text.startswith("before\n<!-- results -->\na machine; a version; 2026-01-01\n\n| what | measured |")
        assert text.endswith("<!-- /results -->\nafter\n")
        assert "\nold\n" not in text
    assert page.read_text().count("(../benchmarks/cpu_mp_nce.svg)") == 1
    assert "| 4096 | 1 s" in page.read_text()
    assert "| eager PyTorch reference / ours, fp32, N = 4096 | 4.10 (4.1 s / 1 s) | holds |" in readme.read_text()
    assert "torch.mm" not in readme.read_text()
    open_ones = sum(r.verdict == "not measured" for r in ratios.results(read_rows(results / "cpu.csv")))
    assert (
        f"[All figures](docs/page.md): of {open_ones + 2}, 2 are as required and {open_ones} not" in readme.read_text()
    )
    write_rows(results / "cuda.csv", [row(device="cuda", machine="a GPU")])
    write_tables(readme, page, results)
    for path in (readme, page):
        assert "\na GPU; a version" in path.read_text()
    readme.write_text("without an end <!-- results -->")
    with pytest.raises(ValueError, match="<!-- /results -->"):
        write_tables(readme, page, results)


def test_the_command(tmp_path, capsys):
    arguments = ["--sizes", "16", "--dim", "8", "--seconds", "0", "--out"]
    right, wrong = (
        Provider(OURS, p, (objective,), 0, 1) for p, objective in ((ours, "MP-NCE"), (wrong_loss, "InfoNCE"))
    )
    assert main([*arguments, str(tmp_path)], (right,)) == 0
    (measured,) = read_rows(tmp_path / "cpu.csv")
    assert (measured.objective, measured.provider, measured.n, measured.d, measured.note) == ("MP-NCE", OURS, 16, 8, "")
    assert measured.p50 > 0
    assert measured.extra_bytes is not None
    assert "MP-NCE: M = 3·N rows, D = 8" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "refused")], (wrong,)) == 1


def test_the_command_for_ranks(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(over_ranks, "PROVIDERS", {"MP-NCE": over_ranks.PROVIDERS["MP-NCE"]})
    arguments = ["--ranks", "1", "2", "--samples", "16", "--dim", "8", "--seconds", "0", "--out", str(tmp_path)]
    assert over_ranks.main(arguments) == 0
    alone, gather, ring = rows = read_rows(tmp_path / "ranks.csv")
    assert [row.ranks for row in rows] == [1, 2, 2]
    assert alone.sent_bytes == 0 < gather.sent_bytes < ring.sent_bytes
    assert all(row.note == "" and row.p50 > 0 and row.extra_bytes is not None for row in rows)
    text = (tmp_path / "ranks.md").read_text()
    assert text.endswith(capsys.readouterr().out.removesuffix("\n"))
    assert "| MP-NCE | uniclip-kernels, ring |" in text


def test_wrong_gradients_over_ranks_are_refused(monkeypatch):
    def wrong(group, function, case):
        results = on_ranks(group, function, case)
        if function is over_ranks._result and case.provider == over_ranks.RING:
            results[1][1][3, 2] += 0.01 * abs(results[1][1]).max()
        return results

    on_ranks = over_ranks._on_ranks
    monkeypatch.setattr(over_ranks, "_on_ranks", wrong)
    gather, ring = over_ranks.measure("MP-NCE", [2], 8, 8, 0.0, "now")
    assert (gather.note, gather.ranks, gather.repetitions) == ("", 2, 3)
    assert ring.note.startswith("refused: tensor 1 is")
    assert (ring.p50, ring.sent_bytes, ring.extra_bytes) == (None, None, None)


def _result(rows: list[Row], what: str) -> ratios.Result:
    return next(result for result in ratios.results(rows) if result.what.startswith(what))
