"""What the machine code of a kernel says: registers, local memory, its instructions, the loop over D. No device is needed.

Registers and local memory come from cuobjdump, instructions from nvdisasm; both are in Triton's package.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_SECTION = re.compile(r"^\.text\.(\S+):")
_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+((?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)[^;]*);")

#: The tensor-core instruction that Triton uses on each architecture; the CUDA kernels have HMMA on all.
TENSOR_CORE = {"80": "HMMA", "90": "HGMMA", "100": "UTCHMMA", "120": "HMMA"}
#: Of a multiprocessor; a program can have 1 KiB less, which the system keeps of each.
SHARED_BYTES = {"80": 164 << 10, "90": 228 << 10, "100": 228 << 10, "120": 100 << 10}
RESERVED_BYTES = 1 << 10
REGISTERS = 65536
_TILE = 128  # side of a tile of similarities


@dataclass(frozen=True)
class Code:
    registers: int
    stack: int  # bytes of local memory a thread, where spills show
    listing: tuple[tuple[str, str], ...]  # (opcode, text) in order; labels too, with opcode "label"
    threads: int = 0  # of a program
    shared: int = 0  # bytes a program asks for at its launch

    @functools.cached_property
    def counts(self) -> Counter[str]:
        return Counter(opcode for opcode, _ in self.listing)

    def spills(self) -> bool:
        return self.stack > 0 or self.counts["STL"] > 0 or self.counts["LDL"] > 0

    def programs(self, arch: str) -> int:
        """How many programs a multiprocessor runs together."""
        registers = -(-self.registers // 8) * 8 * self.threads
        threads = 1536 if arch == "120" else 2048
        return min(
            REGISTERS // registers, SHARED_BYTES[arch] // (self.shared + RESERVED_BYTES), threads // self.threads
        )


def read(cubin: bytes) -> dict[str, Code]:
    """The kernels of a cubin by name, but for what is said only at their launch."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = run("cuobjdump", "--dump-resource-usage", file.name)
        code = run("nvdisasm", "-c", file.name)
    resources = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+)", usage)
    listings = _listings(code)
    return {name: Code(int(registers), int(stack), listings[name]) for name, registers, stack in resources}


def _listings(code: str) -> dict[str, tuple[tuple[str, str], ...]]:
    listings: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in code.splitlines():
        if section := _SECTION.match(line):
            current = listings.setdefault(section[1], [])
        elif label := _LABEL.match(line):
            current.append(("label", label[1]))
        elif instruction := _INSTRUCTION.match(line):
            current.append((instruction[2], instruction[1]))
    return {name: tuple(listing) for name, listing in listings.items()}


@dataclass(frozen=True)
class ProductLoop:
    counts: Counter[str]
    repeated: bool  # or unrolled whole


def product_loop(code: Code, tensor_core: str) -> ProductLoop:
    """The outermost loop with tensor-core instructions, or all from the first to the last of these if there is none."""
    at = [i for i, (opcode, _) in enumerate(code.listing) if opcode == tensor_core]
    spans = [(start, end) for start, end in _loops(code) if any(start < i < end for i in at)]
    repeated = bool(spans)
    if not at:
        return ProductLoop(Counter(), False)
    start, end = max(spans, key=lambda span: span[1] - span[0]) if repeated else (at[0], at[-1])
    return ProductLoop(Counter(opcode for opcode, _ in code.listing[start : end + 1]), repeated)


def _loops(code: Code) -> list[tuple[int, int]]:
    """Backward branches that jump over no exit: behind the last one are waits that were moved out of line."""
    labels = {text: i for i, (opcode, text) in enumerate(code.listing) if opcode == "label"}
    exits = [i for i, (_, text) in enumerate(code.listing) if text.strip() == "EXIT"]
    loops = []
    for i, (opcode, text) in enumerate(code.listing):
        target = re.search(r"`\((\.L_\w+)\)", text) if opcode == "BRA" else None
        start = labels[target[1]] if target else i
        if start < i and not any(start < e < i for e in exits):
            loops.append((start, i))
    return loops


def products_wanted(tensor_core: str, threads: int, d: int) -> int:
    """Tensor-core instructions that a warp issues for a tile of D 16-bit columns."""
    if tensor_core == "UTCHMMA":  # one thread starts the products of a whole program
        return d // 16
    a_warp_has = {"HMMA": 16 * 8 * 16, "HGMMA": 16 * _TILE * 16}[tensor_core]
    return _TILE * _TILE * d // a_warp_has // (threads // 32)


def assert_as_planned(code: Code, arch: str) -> None:
    assert not code.spills(), f"stack of {code.stack} bytes, {code.counts['STL']} STL, {code.counts['LDL']} LDL"
    assert code.shared <= SHARED_BYTES[arch] - RESERVED_BYTES, f"{code.shared} bytes of shared memory"
    assert code.programs(arch) >= 1, f"{code.threads} threads of {code.registers} registers"


def assert_two_programs(code: Code, arch: str) -> None:
    """One multiplies while the other takes exponentials."""
    facts = f"{code.threads} threads of {code.registers} registers, {code.shared} bytes of shared memory"
    assert code.programs(arch) >= 2, facts


def assert_multiplies(code: Code, tensor_core: str, d: int) -> None:
    """The loop over D multiplies on the tensor cores, or all of it does where it was unrolled."""
    loop = product_loop(code, tensor_core)
    assert loop.counts[tensor_core] > 0, f"no {tensor_core}"
    wanted = products_wanted(tensor_core, code.threads, d)
    found = loop.counts[tensor_core]
    assert loop.repeated or found >= wanted, f"{found} of {wanted} {tensor_core}, and no loop around them"


def run(tool: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True, cwd=cwd).stdout
