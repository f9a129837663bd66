#include "amx.h"

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "tile_kernels.h"

#define UNICLIP_AMX __attribute__((target("amx-tile,amx-bf16")))

namespace uniclip {

namespace {

constexpr int64_t kSide = 16;         // rows of a tile register, and words of a row
constexpr int64_t kQuad = 2 * kSide;  // rows and columns of c at a time: four tiles of sums, two of each operand

struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {};
};

thread_local int64_t configured_rows = 0;

// Tiles 0 to 3 are c's, 4 and 5 are a's, with that many rows; 6 and 7 are b's.
UNICLIP_AMX void configure(int64_t rows) {
  if (rows == configured_rows) return;
  Configuration configuration;
  std::fill_n(configuration.rows, 6, static_cast<uint8_t>(rows));
  std::fill_n(configuration.rows + 6, 2, static_cast<uint8_t>(kSide));
  _tile_loadconfig(&configuration);
  configured_rows = rows;
}

}  // namespace

bool use_amx() {
  static const bool lent = [] {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return has_bfloat16_instruction() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return lent;
}

UNICLIP_AMX void multiply_amx(int64_t m, int64_t n, int64_t k, const bfloat16* a, int64_t a_stride, const bfloat16* b,
                              int64_t b_stride, float* c, int64_t c_stride, bool add) {
  const int64_t a_bytes = a_stride * sizeof(bfloat16), b_bytes = 2 * b_stride * sizeof(bfloat16),
                c_bytes = c_stride * sizeof(float);
  for (int64_t i = 0; i < m; i += kQuad) {
    // The last rows are halved; of an odd number the one in the middle is in both halves.
    const int64_t left = std::min(m - i, kQuad), rows = (left + 1) / 2;
    const bfloat16 *upper_a = a + i * a_stride, *lower_a = upper_a + (left - rows) * a_stride;
    configure(rows);
    for (int64_t j = 0; j < n; j += kQuad) {
      float *upper = c + i * c_stride + j, *lower = upper + (left - rows) * c_stride;
      if (add) {
        _tile_loadd(0, upper, c_bytes);
        _tile_loadd(1, upper + kSide, c_bytes);
        _tile_loadd(2, lower, c_bytes);
        _tile_loadd(3, lower + kSide, c_bytes);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int64_t p = 0; p < k; p += 2 * kSide) {
        const bfloat16* pairs = b + p * b_stride + 2 * j;
        _tile_loadd(4, upper_a + p, a_bytes);
        _tile_loadd(6, pairs, b_bytes);
        _tile_loadd(5, lower_a + p, a_bytes);
        _tile_loadd(7, pairs + 2 * kSide, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, upper, c_bytes);
      _tile_stored(1, upper + kSide, c_bytes);
      _tile_stored(2, lower, c_bytes);
      _tile_stored(3, lower + kSide, c_bytes);
    }
  }
}

UNICLIP_AMX void release_amx() {
  if (configured_rows == 0) return;
  _tile_release();
  configured_rows = 0;
}

}  // namespace uniclip

#else

#include <cstdlib>

namespace uniclip {

bool use_amx() { return false; }
void multiply_amx(int64_t, int64_t, int64_t, const bfloat16*, int64_t, const bfloat16*, int64_t, float*, int64_t,
                  bool) {
  std::abort();
}
void release_amx() {}

}  // namespace uniclip

#endif
