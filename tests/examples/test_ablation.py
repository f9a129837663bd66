"""The ablation runs every configuration, goes on where it was stopped, and says in its page what was measured."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from uniclip.ablation import report
from uniclip.ablation.configurations import CONFIGURATIONS, FULL

from tests.examples.conftest import EXAMPLES

RUN = [sys.executable, str(EXAMPLES / "ablation.py"), "--seeds", "1", "--workers", "1"]


def ablation(out: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run([*RUN, "--out", str(out), *more], capture_output=True, text=True, timeout=600)


def test_quick_ablation_measures_every_configuration_and_goes_on_after_a_stop(tmp_path):
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nof old\n{report.END}\nafter\n")
    more = ["--quick", "--page", str(page)]
    # As from a terminal: what is started in a shell's background ignores SIGINT.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([*RUN, "--out", str(out), *more], **pipes, preexec_fn=heed)
    deadline = time.monotonic() + 300
    while len(list(out.glob("*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; to go on:\n" in said
    assert "Traceback" not in errors

    done = ablation(out, *more)
    assert done.returncode == 0, done.stderr
    assert ", 0 of them done before" not in done.stdout
    rows = [
        tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.read_text().splitlines() if "|" in line
    ]
    assert rows[2:] == [*((c.part, c.label) for c in CONFIGURATIONS), ("", "chance")]
    assert len(set(rows)) == len(rows)
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith(f"{report.END}\nafter\n")
    assert "of old" not in page.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "out",
        "page.md",
        "page-parts.svg",
        "page-training.svg",
        "page-runs.csv",
    }

    # What is not there is run again, and gives the same numbers.
    files = sorted(out.iterdir())
    assert len(files) == len(CONFIGURATIONS)
    lost = files[len(files) // 2]
    first = json.loads(lost.read_text())
    lost.unlink()
    kept = files[0].stat().st_mtime_ns
    done = ablation(out, "--quick")
    assert f"{len(files)} runs, {len(files) - 1} of them done before" in done.stdout
    assert json.loads(lost.read_text())["measures"] == first["measures"]
    assert files[0].stat().st_mtime_ns == kept

    other = ablation(out)
    assert other.returncode == 1
    assert "is of another ablation; remove it, or give another --out" in other.stderr


def result(configuration, seed: int, recall: float) -> report.Result:
    names = [*report.RECALLS, "across_artists_recall@1"]
    names += [f"{what}_{level}" for what in ("zero_shot", "probe") for level in ("group", "subgroup")]
    ranks = {f"{way}_median_rank": 4.0 for way in ("text_to_image", "image_to_text")}
    return report.Result(configuration, seed, dict.fromkeys(names, recall) | ranks, dict.fromkeys(names, 0.01), 1.0)


def test_table_by_hand():
    full, clip = (
        next(c for c in CONFIGURATIONS if c.label == label) for label in (f"{FULL}, aware", "CLIP, separate spaces")
    )
    results = [result(full, 0, 0.2), result(full, 1, 0.4), result(clip, 0, 0.1), result(clip, 1, 0.2)]
    lines = {tuple(line.split(" | ")[:2]): line.split(" | ")[2:] for line in report.table(results).splitlines()}
    of_full, of_clip = lines["| parts", full.label], lines["| parts", clip.label]
    assert of_full[0] == "30.0 ± 14.1 / 30.0 / 30.0"
    assert of_clip[4] == "15.0 ± 7.1"
    assert of_clip[1] == "4.0"
    # -10 and -20 points: their standard deviation is 7.07, by the square root of 2.
    assert of_clip[-1] == "-15.0 ± 5.0 |"
    assert of_full[-1] == "— |"
    assert lines["| ", "chance"][4] == "1.0 ± 0.0"


@pytest.mark.parametrize("name", ["loss", "similarity", "aware", "positives", "one_space"])
def test_configurations_differ_in_what_they_are_named_for(name):
    """Each part of UniCLIP is left out by some, and no two are the same."""
    parts = [c for c in CONFIGURATIONS if c.part == "parts"]
    assert len({getattr(c.objective, name) for c in parts}) > 1
    assert len({json.dumps(c.settings) for c in CONFIGURATIONS}) == len(CONFIGURATIONS)
