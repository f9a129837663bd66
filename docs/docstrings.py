"""An extension of Griffe: docstrings that classes make of that of a base, with links where they name functions."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import griffe


class Docstrings(griffe.Extension):
    def __init__(self) -> None:
        self._as_written: dict[str, str | None] = {}

    def on_class_instance(self, *, node: ast.ClassDef, cls: griffe.Class, **_: object) -> None:
        self._as_written[cls.path] = ast.get_docstring(node, clean=False)
        for statement in node.body:
            match statement:
                case ast.Assign(targets=[ast.Name("__doc__")], value=ast.JoinedStr(values=parts)):
                    text = "".join(self._text(part, cls.module.path) for part in parts)
                    cls.docstring = griffe.Docstring(inspect.cleandoc(text), parent=cls)

    def _text(self, part: ast.expr, module: str) -> str:
        match part:
            case ast.Constant(text):
                return text
            case ast.FormattedValue(value=ast.Attribute(value=ast.Name(base), attr="__doc__")):
                return self._as_written[f"{module}.{base}"]
        raise ValueError(f"{module}: {ast.unparse(part)} in a docstring")

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            text = re.sub(r":func:`(?:\w+\.)*(\w+)`", r"[`\1`][uniclip_kernels.\1]", obj.docstring.value)
            text = re.sub(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", _one_by_one, text, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"^::\n\n((?:    .*\n?)+)", _fenced, text, flags=re.MULTILINE)


def _one_by_one(found: re.Match[str]) -> str:
    """Arguments that share a line, each in its own."""
    indent, names, text = found.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))


def _fenced(found: re.Match[str]) -> str:
    return f"```python\n{textwrap.dedent(found[1]).rstrip()}\n```\n"
