// Products of bfloat16 blocks by the processor's tile registers (AMX), where it has them and the system lends them.
#pragma once

#include "types.h"

namespace uniclip {

// Has the processor them, does the system lend them, and does ATEN_CPU_CAPABILITY allow as much?
bool use_amx();

// As gemm for bfloat16; n and k are multiples of 32.
void multiply_amx(int64_t m, int64_t n, int64_t k, const bfloat16* a, int64_t a_stride, const bfloat16* b,
                  int64_t b_stride, float* c, int64_t c_stride, bool add);

// Gives this thread's tile registers back: the system saves them with the thread as long as they are in use.
void release_amx();

}  // namespace uniclip
