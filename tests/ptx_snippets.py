"""Small PTX kernels for the tests of the executor."""

import numpy as np

from tests.emulation.ptx import run

_HEADER = ".version 8.8\n.target sm_80\n.address_size 64\n"


def kernel_text(body: str, parameters: str = "", declarations: str = "") -> str:
    """A module with one kernel `k`; `parameters` like "u64 out, u32 n". Registers %p, %h, %r, %f, %d are declared."""
    listed = ",\n".join(".param .{} {}".format(*parameter.split()) for parameter in parameters.split(",") if parameter)
    return f"""{_HEADER}{declarations}
.visible .entry k({listed})
{{
.reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .f32 %f<16>; .reg .b64 %d<32>;
{body}
}}"""


def evaluate(instruction: str, *inputs, result: type) -> np.ndarray:
    """What `instruction` makes of registers a, b, c, … that hold `inputs`, one thread for each of their elements.

    The result is register d, of numpy type `result`. Registers p and q are predicates for the snippet's use.
    """
    inputs = [np.asarray(values) for values in inputs]
    count = max(values.size for values in inputs) if inputs else 32
    buffers = [np.ascontiguousarray(np.broadcast_to(values, count)) for values in inputs]
    out = np.zeros(count, result)
    names = "abcefgh"[: len(inputs)]
    lines = [f".reg .pred p, q; .reg .b{_bits(out)} d;", "mov.u32 %r0, %tid.x;"]
    for name, buffer in zip(names, buffers, strict=True):
        lines += [
            f".reg .b{_bits(buffer)} {name};",
            f"ld.param.u64 %d0, [in_{name}]; mad.wide.u32 %d0, %r0, {buffer.itemsize}, %d0;",
            f"ld.global.b{_bits(buffer)} {name}, [%d0];",
        ]
    lines += [
        instruction,
        f"ld.param.u64 %d0, [out]; mad.wide.u32 %d0, %r0, {out.itemsize}, %d0; st.global.b{_bits(out)} [%d0], d;",
        "ret;",
    ]
    text = kernel_text("\n".join(lines), ", ".join([*(f"u64 in_{name}" for name in names), "u64 out"]))
    run(text, "k", (1,), (count,), [*buffers, out])
    return out


def _bits(array: np.ndarray) -> int:
    return array.itemsize * 8
