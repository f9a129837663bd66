// The operators that only devices of compute capability 9.0 have.
#include <torch/csrc/stable/library.h>

#include "../tensors.h"
#include "hopper.h"

namespace uniclip::cuda {
namespace {

void hopper_lse(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature, const Tensor offset,
                const OptionalTensor mask, bool allow_tf32, int64_t first_row_tile, int64_t first_col_tile,
                int64_t row_tiles, int64_t col_tiles, Tensor lse, Tensor row_parts, Tensor by_col, int64_t blocks) {
  run(rows, uniclip_cuda_hopper_lse, similarities(rows, ids, tiles, temperature, offset, mask, allow_tf32),
      rectangle(first_row_tile, first_col_tile, row_tiles, col_tiles), lse, row_parts, by_col, blocks);
}

void hopper_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature, const Tensor offset,
                 const OptionalTensor mask, bool allow_tf32, int64_t first_row_tile, int64_t first_col_tile,
                 int64_t row_tiles, int64_t col_tiles, const Tensor lse, const Tensor coefficient, Tensor h,
                 Tensor parts, int64_t blocks) {
  run(rows, uniclip_cuda_hopper_grad, similarities(rows, ids, tiles, temperature, offset, mask, allow_tf32),
      rectangle(first_row_tile, first_col_tile, row_tiles, col_tiles), lse, coefficient, h, parts, blocks);
}

}  // namespace
}  // namespace uniclip::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(uniclip_kernels, m) {
  m.def("cuda_hopper_lse(" UNICLIP_SIMILARITIES ", " UNICLIP_RECTANGLE
        ", Tensor(a!) lse, Tensor(b!) row_parts, Tensor(c!) by_col, int blocks) -> ()");
  m.def("cuda_hopper_grad(" UNICLIP_SIMILARITIES ", " UNICLIP_RECTANGLE
        ", Tensor lse, Tensor coefficient, Tensor(a!) h, Tensor(b!) parts, int blocks) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(uniclip_kernels, CUDA, m) {
  using namespace uniclip::cuda;
  m.impl("cuda_hopper_lse", TORCH_BOX(&hopper_lse));
  m.impl("cuda_hopper_grad", TORCH_BOX(&hopper_grad));
}
