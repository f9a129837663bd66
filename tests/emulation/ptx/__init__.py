"""Executes the PTX that nvcc or Triton emits on the CPU, a whole grid at once.

Every CUDA thread is one lane of numpy arrays and every PTX register is one array, so an instruction costs a few
numpy calls however many threads run it. A kernel is decoded once: each instruction becomes a closure bound to the
arrays it reads and writes. numpy is fast enough (about 2 µs an instruction for 2000 threads), and unlike generated
C++ it needs no compiler and starts at once.

Always errors, each naming the instruction, its line and a thread: global, shared and local accesses out of bounds or
misaligned; reads of registers nobody wrote; deadlocks and divergent barriers; instructions that are not supported.
With `check=True` also reads of shared memory nobody wrote, and data races: in shared memory within one barrier
interval, on bytes of a cp.async that nobody waited for, and between blocks in global memory. Atomic operations are
exempt from these.

    parser, operands, syntax    PTX text -> kernels of instructions
    program                     instructions -> straight-line segments; which register reads to check at run time
    machine, active             lanes and registers; operands -> arrays
    memory, copies, races       global, shared and local memory; cp.async; who touched what when
    instructions, fragments     what each instruction does; where matrix elements sit in registers
    scheduler, gates            divergence, exits, barriers
    launch, triton              run(ptx_text, ...) and PTXKernel(jit_function)[grid](...)

Choices where the PTX ISA leaves freedom, or a GPU does what no page specifies:

* mma.sync multiplies exactly, adds everything in float64 and rounds once to the type of D. A GPU sums in a format a
  little wider than float32 and truncates, so it is less exact than this.
* tf32 operands of mma.sync are truncated to 10 mantissa bits; cvt.rna.tf32 rounds to nearest, ties away from zero.
* Approximate functions (ex2, lg2, rcp, rsqrt, sqrt, sin, cos, tanh, div) are numpy's, hence more exact than a GPU's.
* fma is evaluated in float64 and then rounded, to bfloat16 by way of float32: rounding twice shows in about one of
  2^29 float32 results, and one of 2^16 of bfloat16.
* cp.async reads its source when issued and lands, as late as the ISA allows, in the wait that covers it.
* Shared and local memory and unwritten registers hold 0xFF bytes, NaN as floats.

Not modelled: memory fences and caches, reads of global memory that another block overwrites later, wgmma, tcgen05,
TMA, mbarrier, calls, indirect branches, carry flags, and barriers that threads reach at different instructions.
"""

from .errors import PTXError
from .launch import run

__all__ = ["PTXError", "run"]
