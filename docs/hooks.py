"""Hooks of MkDocs: pages and plots of ``benchmarks/results`` under ``results/``, formulas as MathML."""

from __future__ import annotations

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path("benchmarks/results")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted((Path(config.config_file_path).parent / RESULTS).iterdir()):
        if path.suffix in (".md", ".svg"):
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return markdown.replace(f"](../{RESULTS}/", "](results/")


def on_page_content(html_text: str, **_: object) -> str:
    return FORMULA.sub(_mathml, html_text)


def _mathml(found: re.Match[str]) -> str:
    return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")
