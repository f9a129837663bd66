// Rows of the user to unit rows in slot order, and the gradient back through the normalisation.
#include <algorithm>
#include <atomic>

#include "ops.h"
#include "parallel.h"
#include "tensors.h"
#include "tile_kernels.h"

namespace uniclip::cpu {

namespace {
constexpr double kMinNorm = 1e-12;  // as torch.nn.functional.normalize
constexpr int64_t kGrain = 64;
constexpr int kFewSteps = 128;  // in which a number has about the relative precision of bfloat16

// Do most numbers of a row but zeros have more than a few steps? Not where some features outweigh the others by far.
template <class In>
bool keeps_precision(const In* x, const fixed16* row, int64_t d) {
  int64_t few = 0, some = 0;
  for (int64_t i = 0; i < d; ++i) {
    const bool is_zero = (x[i].bits & 0x7fff) == 0;
    some += !is_zero;
    few += !is_zero && row[i].steps < kFewSteps && row[i].steps > -kFewSteps;
  }
  return 2 * few <= some;
}

// The row itself, or a copy of it in `buffer` where its elements are strided.
template <class In>
const In* dense_row(const In* data, int64_t row_stride, int64_t column_stride, int64_t row, int64_t d, In* buffer) {
  const In* x = data + row * row_stride;
  if (column_stride == 1) return x;
  for (int64_t i = 0; i < d; ++i) buffer[i] = x[i * column_stride];
  return buffer;
}
}  // namespace

void gather_rows(const Tensor z, const Tensor order, bool normalize, Tensor rows, Tensor inv_norm, Tensor precise) {
  std::atomic<bool> all_precise{true};
  dispatch_rows(z, rows, [&](auto in, auto compute) {
    using In = typename decltype(in)::type;
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const auto& kernels = row_kernels<In, C>();
    const In* data = static_cast<const In*>(z.data_ptr());
    const int64_t row_stride = z.stride(0), column_stride = z.stride(1), d = z.size(1);
    const int64_t* source = vector<int64_t>(order);
    const Matrix<C> out = matrix<C>(rows);
    T* inv = vector<T>(inv_norm);
    parallel_rows(out.rows, kGrain, [&](int64_t begin, int64_t end) {
      auto buffer = make_buffer<In>(d);
      for (int64_t r = begin; r < end; ++r) {
        std::fill(out[r] + (source[r] < 0 ? 0 : d), out[r] + out.cols, C{});
        inv[r] = 0;
        if (source[r] < 0) continue;
        const In* x = dense_row(data, row_stride, column_stride, source[r], d, buffer.get());
        if (normalize) {
          const T norm = kernels.norm(x, d);
          inv[r] = T(1) / (norm < T(kMinNorm) ? T(kMinNorm) : norm);  // a NaN stays
        } else {
          inv[r] = 1;
        }
        kernels.scale(x, inv[r], out[r], d);
        if constexpr (std::is_same_v<C, fixed16>) {  // the product looks for NaN at the front
          const auto is_nan = [](fixed16 v) { return v.steps == kFixedNaN; };
          if (!(inv[r] > 0) && std::any_of(out[r], out[r] + d, is_nan)) out[r][0] = {kFixedNaN};
          if (!keeps_precision(x, out[r], d)) all_precise.store(false, std::memory_order_relaxed);
        }
      }
    });
  });
  *static_cast<bool*>(precise.data_ptr()) = all_precise;
}

void scatter_rows(const Tensor grad_rows, const Tensor z, const Tensor slot, const Tensor inv_norm, const Tensor factor,
                  bool normalize, Tensor grad) {
  dispatch_rows(z, grad_rows, [&](auto in, auto compute) {
    using In = typename decltype(in)::type;
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const auto& kernels = row_kernels<In, C>();
    const In* data = static_cast<const In*>(z.data_ptr());
    const int64_t row_stride = z.stride(0), column_stride = z.stride(1), d = z.size(1);
    const int64_t* source = vector<int64_t>(slot);
    const Matrix<T> g = matrix<T>(grad_rows);
    const T* inv = vector<T>(inv_norm);
    const Matrix<In> out = matrix<In>(grad);
    const T whole = *static_cast<const T*>(factor.data_ptr());
    parallel_rows(out.rows, kGrain, [&](int64_t begin, int64_t end) {
      auto buffer = make_buffer<In>(d);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t s = source[r];
        if (s < 0) {
          std::fill(out[r], out[r] + d, In{});
          continue;
        }
        const In* x = dense_row(data, row_stride, column_stride, r, d, buffer.get());
        // Below the smallest norm the division is by a constant: nothing to project.
        const bool project = normalize && !(inv[s] >= T(1) / T(kMinNorm));
        kernels.backward(g[s], x, inv[s], project, whole * inv[s], out[r], d);
      }
    });
  });
}

}  // namespace uniclip::cpu
