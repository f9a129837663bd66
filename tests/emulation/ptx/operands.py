"""The text of one operand -> its meaning."""

import re

from .errors import PTXError
from .syntax import Address, Discard, Immediate, Negated, Register, Special, Symbol, Tuple

_ADDRESS = re.compile(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+)\s*)?\]")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
_DECIMAL = re.compile(r"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_FLOAT_BITS = re.compile(r"0([fF])([0-9a-fA-F]{8})|0([dD])([0-9a-fA-F]{16})")
_NAME = re.compile(r"[%\w$.]+")
_SPECIAL = re.compile(
    r"%((?:tid|ntid|ctaid|nctaid)\.[xyz]|laneid|n?warpid|lanemask_(?:eq|lt|le|gt|ge)|dynamic_smem_size)"
)


def split(text: str, separator: str = ",") -> list[str]:
    """Splits at separators outside of brackets and braces."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "[{(":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == separator and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def parse_operand(text: str, registers: dict[str, str]):
    """`registers` maps the names in scope to the kernel's unique names."""
    if text in registers:
        return Register(registers[text])
    if text == "_":
        return Discard()
    if text.startswith("{"):
        return Tuple(tuple(parse_operand(part, registers) for part in split(text[1:-1])))
    if "|" in text:
        return Tuple(tuple(parse_operand(part, registers) for part in split(text, "|")))
    if text.startswith("!"):
        return Negated(parse_operand(text[1:].strip(), registers))
    if match := _ADDRESS.fullmatch(text):
        return Address(parse_operand(match[1], registers), int(match[2] or "0", 0))
    if match := _FLOAT_BITS.fullmatch(text):
        return Immediate(int(match[2], 16), "f32") if match[1] else Immediate(int(match[4], 16), "f64")
    if _INTEGER.fullmatch(text):
        return Immediate(_integer(text.rstrip("U")), "integer")
    if _DECIMAL.fullmatch(text):
        return Immediate(float(text), "decimal")
    if match := _SPECIAL.fullmatch(text):
        return Special(match[1])
    if text.startswith("%"):
        raise PTXError(f"register {text} is not declared, or a special register that is not supported")
    if _NAME.fullmatch(text):
        return Symbol(text)
    raise PTXError(f"unsupported operand {text!r}")


def _integer(text: str) -> int:
    """PTX integers: decimal, hexadecimal, binary, and octal with a leading zero."""
    if re.fullmatch(r"-?0\d+", text):
        return int(text, 8)
    return int(text, 0)
