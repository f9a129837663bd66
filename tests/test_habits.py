"""What forges and tools read is well-formed, and what it calls is there."""

import re
from pathlib import Path

import pytest

from uniclip_kernels import __version__

yaml = pytest.importorskip("yaml", reason="in the extra `test`")
tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
JOBS = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]


def commands(job: dict) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("name", JOBS)
def test_jobs(name):
    """Each step is an action of a fixed version, or calls a target of the Makefile with variables that it has."""
    job = JOBS[name]
    matrix = job.get("strategy", {}).get("matrix", {})
    assert job["runs-on"] == "ubuntu-latest"
    assert commands(job)
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v0"))
    for command in commands(job):
        make, target, *variables = command.replace("${{ ", "${{").replace(" }}", "}}").split()
        assert make == "make"
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target
        for variable in variables:
            assert re.search(rf"^{variable.partition('=')[0]} \?=", MAKEFILE, re.MULTILINE), variable
    assert set(re.findall(r"matrix\.(\w+)", str(job))) == matrix.keys()
    assert all(isinstance(value, str) for values in matrix.values() for value in values)  # 3.10 as a number is 3.1


def test_the_versions():
    pythons = JOBS["test"]["strategy"]["matrix"]["python"]
    assert pythons == [f"3.{minor}" for minor in range(10, 15)]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert re.search(r"^PYTHONS \?= (.*)", MAKEFILE, re.MULTILINE)[1].split() == pythons
    oldest, *_ = JOBS["torch"]["strategy"]["matrix"]["torch"]
    assert f"torch>={oldest.removesuffix('.0')}" in PROJECT["dependencies"]
    assert re.search(r"^TORCH \?= (.*)", MAKEFILE, re.MULTILINE)[1] in JOBS["torch"]["strategy"]["matrix"]["torch"]


def test_hooks_before_a_commit_are_those_of_make_lint():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    tools = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in repository["hooks"]}
    assert tools == set(re.findall(r"\$\(BIN\)/([\w-]+)", recipe))


def test_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert (citation["title"], citation["version"], citation["license"]) == (
        PROJECT["name"],
        __version__,
        PROJECT["license"],
    )
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2209.13430"


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").iterdir()), ids=lambda p: p.name)
def test_templates(path):
    front, body = path.read_text().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front).keys() == {"name", "about"}
    assert body.strip()
