"""What the parser makes of PTX text: operands, instructions, variables, kernels."""

from dataclasses import dataclass, field

from .errors import PTXError


@dataclass(frozen=True, slots=True)
class Register:
    name: str


@dataclass(frozen=True, slots=True)
class Special:
    """A special register, without the percent sign: `tid.x`, `laneid`."""

    name: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """The name of a variable, a parameter or a label."""

    name: str


@dataclass(frozen=True, slots=True)
class Immediate:
    """`notation` says how `value` was written: `integer`, `decimal` (1.5), `f32` or `f64` (the bits, 0f… or 0d…)."""

    value: int | float
    notation: str


@dataclass(frozen=True, slots=True)
class Negated:
    """`!%p`."""

    register: Register


@dataclass(frozen=True, slots=True)
class Discard:
    """`_`: a result nobody wants."""


@dataclass(frozen=True, slots=True)
class Address:
    """`[base + offset]`, in bytes."""

    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True, slots=True)
class Tuple:
    """`{a, b}` or `a|b`."""

    elements: tuple


@dataclass(slots=True)
class Instruction:
    """`@predicate opcode.modifiers operands`; `types` are those modifiers that name types, `flags` all others."""

    opcode: str
    types: tuple[str, ...]
    flags: tuple[str, ...]
    operands: tuple
    predicate: Register | Negated | None
    text: str
    location: str

    def flag_among(self, *choices: str, default: str | None = None) -> str | None:
        """The one flag out of several alternatives."""
        return next((flag for flag in self.flags if flag in choices), default)

    def error(self, message: str) -> PTXError:
        return PTXError(f"{message}\n  at {self.location}: {self.text}")


@dataclass(slots=True)
class Variable:
    """A `.global`, `.const`, `.shared` or `.local` array; size 0 is dynamic shared memory."""

    space: str
    name: str
    size: int
    alignment: int
    initial: bytes = b""


@dataclass(slots=True)
class Parameter:
    name: str
    type: str
    size: int


@dataclass
class Kernel:
    """One `.entry`: `registers` gives each register's type, `labels` the index of the instruction behind the label."""

    name: str
    parameters: list[Parameter]
    required_threads: int | None
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)


def registers_of(operand) -> list[str]:
    """Names of all registers that occur in an operand."""
    match operand:
        case Register(name):
            return [name]
        case Negated(register):
            return [register.name]
        case Address(base, _):
            return registers_of(base)
        case Tuple(elements):
            return [name for element in elements for name in registers_of(element)]
    return []
