"""The code of README.md and docs/ runs as it stands; what the pages name is there; the site builds."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import uniclip_kernels
from tests.ranks import ranks

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
CODE = {page: re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE) for page, text in PAGES.items()}
IN_OTHER_WAYS = {"trainers.md", "ranks.md"}  # with the packages it needs, in tests/test_trainers.py; on ranks, below


def leaf(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


def of_readme() -> dict:
    return {name: leaf(5, 4) for name in ("image", "augmented", "text")}


def of_tutorial() -> dict:
    loader = [(torch.randn(6, 5), torch.randn(6, 5), torch.randn(6, 7)) for _ in range(2)]
    return {"image_tower": nn.Linear(5, 4), "text_tower": nn.Linear(7, 4), "loader": loader}


def of_losses() -> dict:
    rows = {name: leaf(5, 4) for name in ("queries", "positives", "hard_negatives")}
    loader = [(torch.randn(5, 6), torch.randn(5, 6)) for _ in range(3)]
    labelled = [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(3)]
    return rows | {
        "D": 4,
        "model": nn.Linear(6, 4),
        "momentum_model": nn.Linear(6, 4),
        "loader": loader,
        "labelled": labelled,
    }


PREAMBLES = {"README.md": of_readme, "tutorial.md": of_tutorial, "losses.md": of_losses}


def run(page: str, **names) -> dict:
    """All code of a page, block after block, where ``names`` mean the same at the start of each."""
    found = vars(uniclip_kernels) | {"torch": torch}
    for block in CODE[page]:
        found |= names
        exec(compile(block, page, "exec"), found)
    return found


@pytest.mark.parametrize("page", sorted(page for page in CODE.keys() - IN_OTHER_WAYS if CODE[page]))
def test_code(page):
    """What the page computes with gets gradients."""
    names = PREAMBLES.get(page, dict)()
    after = run(page, **names)
    frozen = names.get("momentum_model")
    modules = [m for m in after.values() if isinstance(m, nn.Module) and m is not frozen]
    leaves = [p for m in modules for p in m.parameters()]
    leaves += [z for z in after.values() if isinstance(z, torch.Tensor) and z.is_leaf and z.requires_grad]
    assert leaves
    assert all(p.grad.count_nonzero() > 0 for p in leaves)


def test_the_quickstart_learns(capsys):
    torch.manual_seed(0)
    run("index.md")
    first, *_, last = map(float, re.findall(r"step \d+: (\S+)", capsys.readouterr().out))
    assert last < first / 2


def test_the_loss_of_the_tutorial_drops_in():
    clip, ours, *_ = CODE["tutorial.md"]
    names = of_tutorial()
    names["loader"] = names["loader"][:1]
    again = copy.deepcopy(names)
    again |= {"torch": torch, "optimizer": torch.optim.SGD(again["image_tower"].parameters())}
    exec(clip, names)
    exec(ours, again)
    torch.testing.assert_close(again["loss"], names["clip_loss"])


def test_the_tables_of_the_tutorial_do_not_decay():
    names = run("tutorial.md", **of_tutorial())
    decay = {id(p): group["weight_decay"] for group in names["optimizer"].param_groups for p in group["params"]}
    assert [decay[id(p)] for p in names["criterion"].parameters()] == [0, 0]
    assert decay[id(names["image_tower"].weight)] > 0
    assert len(decay) == 6


def _run_of_ranks() -> list[float]:
    image, text, model = leaf(3, 4), leaf(3, 4), nn.Linear(6, 4)
    more = {"model": model, "images": torch.randn(20, 6), "labels": torch.arange(20) % 3}
    run("ranks.md", rank=torch.distributed.get_rank(), image=image, text=text, **more)
    return [z.grad.abs().sum().item() for z in (image, text, model.weight)]


def test_code_of_ranks():
    with ranks(2) as on_both:
        for sums in on_both(_run_of_ranks):
            assert min(sums) > 0


def test_every_variable_is_listed():
    sources = [p for p in ROOT.rglob("*.py") if not {".venv", "build"} & set(p.relative_to(ROOT).parts)]
    read = {v for p in sources for v in re.findall(r'environ(?:\.get\(|\[)"(UNICLIP_\w+)"', p.read_text())}
    assert read == set(re.findall(r"UNICLIP_\w+", PAGES["environment.md"]))


def test_files_of_the_architecture_exist():
    drawn = re.findall(r"[\w/]+(?:\.py|/)(?= |,|<)", (ROOT / "docs/house.svg").read_text())
    named = re.findall(r"`([\w/]+\.py)`", PAGES["architecture.md"])
    assert len(drawn) > 15
    for name in {*drawn, *named}:
        assert any((ROOT / folder / name).exists() for folder in (".", "uniclip_kernels", "tests")), name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_and_commands_of_pages_outside_the_site(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or (ROOT / link).exists(), link
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE)) <= set(targets)


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs", reason="in the extra `docs`")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "PYTHONPATH": str(ROOT),
        "http_proxy": "http://localhost:9",  # nobody is there
        "https_proxy": "http://localhost:9",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = {path.stem: path.read_text() for path in tmp_path.glob("*.html")}
    assert "<math" in pages["mathematics"]
    assert "arithmatex" not in pages["mathematics"]
    assert all(f'id="uniclip_kernels.{name}"' in pages["api"] for name in uniclip_kernels.__all__)
    for name, page in pages.items():  # nothing is fetched by who reads it
        assert not re.findall(r'(?:src|<link[^>]*href)="(?:https?:)?//', page), name
