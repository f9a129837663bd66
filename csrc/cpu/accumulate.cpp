// The second product of the backward pass, H Z and Hᵀ Z, with sums kept in the accumulator type.
#include <algorithm>

#include "ops.h"
#include "parallel.h"
#include "tensors.h"

namespace uniclip::cpu {

namespace {

constexpr int64_t kRows = 128;  // of `out` in one task
constexpr int64_t kCols = 512;
constexpr int64_t kWidth = 128;  // columns and rows of `b` multiplied at a time: a block of it stays in L2
constexpr int64_t kDepth = 256;

// b as gemm wants it: bfloat16 is packed once for all tasks, other types are used as they lie.
template <class C>
struct Operand {
  explicit Operand(const Matrix<C>& b, int64_t depth) : data(b.data), stride(b.stride) { (void)depth; }
  const C* at(int64_t k, int64_t j) const { return data + k * stride + j; }
  const C* data;
  int64_t stride;
};

template <>
struct Operand<bfloat16> {
  Operand(const Matrix<bfloat16>& b, int64_t depth) : stride(b.cols), packed(make_buffer<bfloat16>(depth * b.cols)) {
    parallel_rows(depth / kBlock, 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; ++begin) {
        pack_b(b[begin * kBlock], b.stride, kBlock, b.cols, packed.get() + begin * kBlock * stride);
      }
    });
  }
  const bfloat16* at(int64_t k, int64_t j) const { return packed.get() + k * stride + 2 * j; }
  int64_t stride;
  Buffer<bfloat16> packed;
};

}  // namespace

// `a` may be wider than b is high, by zeros up to a multiple of kBlock; b's storage goes on that far.
void accumulate(Tensor out, const Tensor a, const Tensor b) {
  dispatch_compute(b, [&](auto compute) {
    using C = typename decltype(compute)::type;
    using T = Accumulator<C>;
    const Matrix<T> sums = matrix<T>(out);
    const Matrix<C> left = matrix<C>(a);
    const Matrix<C> right = matrix<C>(b);
    const int64_t depth = round_up(right.rows, kBlock);
    STD_TORCH_CHECK(left.cols >= depth && left.rows >= sums.rows && right.cols == sums.cols,
                    "accumulate: sizes differ");
    const Operand<C> operand(right, depth);
    const int64_t col_tasks = ceil_div(sums.cols, kCols);
    parallel_tasks(
        ceil_div(sums.rows, kRows) * col_tasks, [] { return 0; },
        [&](int64_t task, int) {
          const int64_t i = task / col_tasks * kRows, first = task % col_tasks * kCols;
          const int64_t m = std::min(kRows, sums.rows - i), end = std::min(first + kCols, sums.cols);
          for (int64_t k = 0; k < depth; k += kDepth) {
            for (int64_t j = first; j < end; j += kWidth) {
              gemm(m, std::min(kWidth, end - j), std::min(kDepth, depth - k), left[i] + k, left.stride,
                   operand.at(k, j), operand.stride, sums[i] + j, sums.stride, true);
            }
          }
        });
  });
}

}  // namespace uniclip::cpu
