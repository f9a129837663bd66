"""PTX text -> kernels. Understands what nvcc and Triton's LLVM print, not every liberty of the grammar."""

import re
from bisect import bisect_right
from collections import ChainMap
from functools import lru_cache
from math import prod

from . import types
from .errors import PTXError
from .operands import parse_operand, split
from .syntax import Instruction, Kernel, Parameter, Variable

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_SPACE = re.compile(r"\s*")
_FILE = re.compile(r'^[ \t]*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*")
_LINE_DIRECTIVE = re.compile(r"\.(?:version|target|address_size|file|loc)\b[^\n]*")
_BLOCK = re.compile(r"(?:\.section\b|(?:\.\w+\s+)*\.func\b)[^{;]*[{;]")
_ENTRY = re.compile(r"(?:\.\w+\s+)*\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{")
_LABEL = re.compile(r"([\w$]+)\s*:(?!:)")
_STATEMENT = re.compile(r"[^;]*;")
_OPCODE = re.compile(r"(?:@(!?[\w$%]+)\s+)?([a-z]\w*)((?:\.\w+(?:::\w+)*)*)\s*(.*)", re.DOTALL)
_REGISTERS = re.compile(r"\.reg\s*\.(\w+)\s+(.*)", re.DOTALL)
_REGISTER_RANGE = re.compile(r"(.+)<(\d+)>")
_VARIABLE = re.compile(
    r"(?:\.(?:extern|visible|weak|common)\s+)*\.(shared|global|const|local)\s(.*?)\.(\w+)\s+"
    r"([\w$.%]+)\s*((?:\[\d*\]\s*)*)(?:=\s*(.*))?$",
    re.DOTALL,
)
_PARAMETER = re.compile(r"\.param\s.*?\.([busf]\d+)\s.*?([\w$]+)\s*(?:\[(\d+)\])?$", re.DOTALL)


@lru_cache(maxsize=256)
def parse(text: str) -> dict[str, Kernel]:
    """All kernels of a PTX module by name; each gets the module's variables too."""
    return _Parser(text).module()


class _Parser:
    def __init__(self, text: str):
        self.text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
        self.files = {number: path.rpartition("/")[2] for number, path in _FILE.findall(self.text)}
        self.newlines = [match.start() for match in re.finditer("\n", self.text)]
        self.position = 0

    def accept(self, pattern: re.Pattern) -> re.Match | None:
        """Steps over `pattern` if the text goes on with it, leading white space apart."""
        start = _SPACE.match(self.text, self.position).end()
        match = pattern.match(self.text, start)
        self.position = match.end() if match else start
        return match

    def line(self) -> int:
        return bisect_right(self.newlines, self.position) + 1

    def error(self, message: str) -> PTXError:
        return PTXError(f"line {self.line()}: {message}")

    def module(self) -> dict[str, Kernel]:
        kernels, variables = {}, []
        while not self.accept(re.compile(r"\Z")):
            if self.accept(_LINE_DIRECTIVE):
                continue
            if header := self.accept(_ENTRY):
                kernel = Kernel(header[1], _parameters(header[2] or ""), _required_threads(header[3]))
                self.body(kernel)
                kernels[kernel.name] = kernel
            elif header := self.accept(_BLOCK):
                if header[0].endswith("{"):
                    self.skip_block()
            elif statement := self.accept(_STATEMENT):
                variables.append(_variable(statement[0][:-1]))
            else:
                raise self.error("the module ends inside a statement")
        for kernel in kernels.values():
            kernel.variables[:0] = variables
        return kernels

    def skip_block(self) -> None:
        depth = 1
        while depth:
            brace = re.compile(r"[{}]").search(self.text, self.position)
            if not brace:
                raise self.error("a brace is never closed")
            depth += 1 if brace[0] == "{" else -1
            self.position = brace.end()

    def body(self, kernel: Kernel) -> None:
        scope, opened, source = ChainMap(), 0, ""
        while True:
            if loc := self.accept(_LOC):
                source = f" ({self.files.get(loc[1], '?')}:{loc[2]})"
            elif self.accept(re.compile(r"\{")):
                opened += 1
                scope = scope.new_child()
            elif self.accept(re.compile(r"\}")):
                if len(scope.maps) == 1:
                    return
                scope = scope.parents
            elif label := self.accept(_LABEL):
                kernel.labels[label[1]] = len(kernel.instructions)
            elif statement := self.accept(_STATEMENT):
                content = " ".join(statement[0][:-1].split())
                if content.startswith(".reg"):
                    _declare(content, kernel, scope, f"@{opened}" if len(scope.maps) > 1 else "")
                elif content.startswith("."):
                    if not content.startswith(".pragma"):
                        kernel.variables.append(_variable(content))
                elif content:
                    start = bisect_right(self.newlines, statement.start()) + 1
                    location = f"line {start}{source}"
                    kernel.instructions.append(_instruction(content, scope, location))
            else:
                raise self.error(f"kernel {kernel.name} ends inside a statement")


def _parameters(text: str) -> list[Parameter]:
    parameters = []
    for declaration in split(text):
        match = _PARAMETER.match(declaration)
        if not match:
            raise PTXError(f"unsupported kernel parameter: {declaration}")
        parameters.append(Parameter(match[2], match[1], types.bits(match[1]) // 8 * int(match[3] or 1)))
    return parameters


def _required_threads(directives: str) -> int | None:
    match = re.search(r"\.reqntid\s+(\d+(?:\s*,\s*\d+)*)", directives)
    return prod(int(extent) for extent in match[1].split(",")) if match else None


def _declare(statement: str, kernel: Kernel, scope: ChainMap[str, str], suffix: str) -> None:
    """Enters registers; `suffix` keeps apart the same name in two blocks of inline assembly."""
    match = _REGISTERS.match(statement)
    for declared in split(match[2]):
        span = _REGISTER_RANGE.fullmatch(declared)
        for name in [f"{span[1]}{i}" for i in range(int(span[2]))] if span else [declared]:
            scope[name] = name + suffix
            kernel.registers[name + suffix] = match[1]


def _variable(statement: str) -> Variable:
    match = _VARIABLE.match(" ".join(statement.split()))
    if not match:
        raise PTXError(f"unsupported declaration: {statement.strip()}")
    space, attributes, type_name, name, extents, initial = match.groups()
    element = types.bits(type_name) // 8
    alignment = re.search(r"\.align\s+(\d+)", attributes)
    count = prod(int(extent or 0) for extent in re.findall(r"\[(\d*)\]", extents)) if extents else 1
    try:
        values = [int(value, 0) for value in re.findall(r"[^\s{},]+", initial or "")]
    except ValueError:
        raise PTXError(f"unsupported initial value: {statement.strip()}") from None
    content = b"".join((value % (1 << 8 * element)).to_bytes(element, "little") for value in values)
    return Variable(space, name, count * element, int(alignment[1]) if alignment else element, content)


def _instruction(content: str, scope: ChainMap[str, str], location: str) -> Instruction:
    match = _OPCODE.fullmatch(content)
    if not match:
        raise PTXError(f"cannot parse\n  at {location}: {content}")
    guard, opcode, modifiers, rest = match.groups()
    parts = modifiers.split(".")[1:]
    try:
        predicate = parse_operand(guard, scope) if guard else None
        operands = tuple(parse_operand(operand, scope) for operand in split(rest))
    except PTXError as error:
        raise PTXError(f"{error}\n  at {location}: {content}") from None
    names = tuple(part for part in parts if types.is_type(part))
    flags = tuple(part for part in parts if not types.is_type(part))
    return Instruction(opcode, names, flags, operands, predicate, content, location)
