// The operators that only devices of compute capability 9.0 have.
#include <torch/csrc/stable/library.h>

#include "../tensors.h"
#include "hopper.h"

namespace uniclip::cuda {
namespace {

void hopper_lse(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature, const Tensor offset,
                const OptionalTensor mask, int64_t first_row_tile, int64_t first_col_tile, int64_t row_tiles,
                int64_t col_tiles, int64_t blocks, Tensor lse, Tensor row_parts, Tensor by_col) {
  const Launch launch(rows);
  launch.check(uniclip_cuda_hopper_lse(operand(rows), pointer<void>(rows), rows.size(0), rows.size(1),
                                       pointer<int>(ids), pointer<int>(tiles), pointer<float>(temperature),
                                       pointer<float>(offset), pointer<unsigned char>(mask), temperature.size(0),
                                       pointer<float>(lse), pointer<float>(row_parts), pointer<float>(by_col),
                                       first_row_tile, first_col_tile, row_tiles, col_tiles, blocks, launch.stream()));
}

void hopper_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature, const Tensor offset,
                 const OptionalTensor mask, const Tensor lse, const Tensor coefficient, int64_t first_row_tile,
                 int64_t first_col_tile, int64_t row_tiles, int64_t col_tiles, int64_t blocks, Tensor h, Tensor parts) {
  const Launch launch(rows);
  launch.check(uniclip_cuda_hopper_grad(
      operand(rows), pointer<void>(rows), rows.size(0), rows.size(1), pointer<int>(ids), pointer<int>(tiles),
      pointer<float>(temperature), pointer<float>(offset), pointer<unsigned char>(mask), temperature.size(0),
      pointer<float>(lse), pointer<float>(coefficient), pointer<void>(h), pointer<float>(parts), first_row_tile,
      first_col_tile, row_tiles, col_tiles, blocks, launch.stream()));
}

}  // namespace
}  // namespace uniclip::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(uniclip_kernels, m) {
  m.def(
      "cuda_hopper_lse(Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, Tensor? mask, int "
      "first_row_tile, int first_col_tile, int row_tiles, int col_tiles, int blocks, Tensor(a!) lse, Tensor(b!) "
      "row_parts, Tensor(c!) by_col) -> ()");
  m.def(
      "cuda_hopper_grad(Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, Tensor? mask, Tensor "
      "lse, Tensor coefficient, int first_row_tile, int first_col_tile, int row_tiles, int col_tiles, int blocks, "
      "Tensor(a!) h, Tensor(b!) parts) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(uniclip_kernels, CUDA, m) {
  using namespace uniclip::cuda;
  m.impl("cuda_hopper_lse", TORCH_BOX(&hopper_lse));
  m.impl("cuda_hopper_grad", TORCH_BOX(&hopper_grad));
}
