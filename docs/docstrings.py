"""Docstrings as Python has them, where a class makes its own, and with links where they name functions."""

from __future__ import annotations

import inspect
import re
import textwrap

import griffe

import uniclip_kernels


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        public = getattr(uniclip_kernels, obj.name, None)
        if obj.is_class and public is not None:
            obj.docstring = griffe.Docstring(inspect.getdoc(public) or "", parent=obj)
        if obj.docstring is not None:
            text = re.sub(r":func:`(?:\w+\.)*(\w+)`", r"[`\1`][uniclip_kernels.\1]", obj.docstring.value)
            obj.docstring.value = re.sub(r"^::\n\n((?:    .*\n?)+)", _fenced, text, flags=re.MULTILINE)


def _fenced(found: re.Match[str]) -> str:
    return f"```python\n{textwrap.dedent(found[1]).rstrip()}\n```\n"
