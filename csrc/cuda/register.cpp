// Schemas and CUDA implementations of the primitives, through PyTorch's stable ABI: tensors become raw pointers on the
// device and current stream of the first one. The host emulation of the tests registers the same functions for CPU
// tensors, under another library name.
#include <torch/csrc/stable/library.h>

#include "ops.h"
#include "tensors.h"

#ifndef UNICLIP_LIBRARY
#define UNICLIP_LIBRARY uniclip_kernels
#define UNICLIP_DEVICE CUDA
#endif
// The arguments of these macros of PyTorch are not expanded, those of ours are.
#define UNICLIP_FRAGMENT(library, m) STABLE_TORCH_LIBRARY_FRAGMENT(library, m)
#define UNICLIP_IMPL(library, device, m) STABLE_TORCH_LIBRARY_IMPL(library, device, m)

namespace uniclip::cuda {
namespace {

void check_values(const Tensor temperature, const Tensor offset, const Tensor weight, const OptionalTensor mask,
                  const OptionalTensor ids, int64_t limit, Tensor valid) {
  const Launch launch(temperature);
  const int64_t stride = ids.has_value() ? ids->stride(0) : 0, count = ids.has_value() ? ids->size(0) : 0;
  const auto* from = ids.has_value() ? static_cast<const int64_t*>(ids->data_ptr()) : nullptr;
  launch.check(uniclip_cuda_check_values(pointer<float>(temperature), pointer<float>(offset), pointer<float>(weight),
                                         pointer<unsigned char>(mask), temperature.size(0), from, stride, count, limit,
                                         pointer<bool>(valid), valid.size(0), launch.stream()));
}

void number_samples(const Tensor by_sample, const Tensor row, const OptionalTensor domain_ids, int64_t domains,
                    Tensor domain, Tensor first, Tensor end) {
  const Launch launch(by_sample);
  const int64_t stride = domain_ids.has_value() ? domain_ids->stride(0) : 0;
  const auto* from = domain_ids.has_value() ? static_cast<const int64_t*>(domain_ids->data_ptr()) : nullptr;
  launch.check(uniclip_cuda_number_samples(pointer<int64_t>(by_sample), pointer<int64_t>(row), from, stride,
                                           by_sample.size(0), domains, pointer<short>(domain), pointer<int>(first),
                                           pointer<int>(end), launch.stream()));
}

void layout(const Tensor domain, const Tensor position, const Tensor row, const Tensor first, const Tensor end,
            const OptionalTensor starts, const OptionalTensor mask, Tensor order, Tensor slot, Tensor ids, Tensor tiles,
            Tensor runs, Tensor positives) {
  const Launch launch(domain);
  launch.check(uniclip_cuda_layout(pointer<short>(domain), pointer<int64_t>(position), pointer<int64_t>(row),
                                   pointer<int>(first), pointer<int>(end), pointer<int64_t>(starts),
                                   pointer<unsigned char>(mask), domain.size(0), runs.size(1), order.size(0),
                                   pointer<int64_t>(order), pointer<int64_t>(slot), pointer<int>(ids),
                                   pointer<int>(tiles), pointer<int>(runs), pointer<int>(positives), launch.stream()));
}

void gather_rows(const Tensor z, const Tensor order, bool normalize, Tensor rows, Tensor inv_norm) {
  const Launch launch(z);
  launch.check(uniclip_cuda_gather_rows(operand(z), z.data_ptr(), z.stride(0), z.stride(1), z.size(1),
                                        pointer<int64_t>(order), rows.size(0), rows.size(1), normalize,
                                        pointer<void>(rows), pointer<float>(inv_norm), launch.stream()));
}

void scatter_rows(const Tensor grad_rows, const Tensor z, const Tensor slot, const Tensor inv_norm, const Tensor factor,
                  bool normalize, Tensor grad) {
  const Launch launch(z);
  launch.check(uniclip_cuda_scatter_rows(operand(z), pointer<float>(grad_rows), grad_rows.size(1), z.data_ptr(),
                                         z.stride(0), z.stride(1), z.size(1), pointer<int64_t>(slot), slot.size(0),
                                         pointer<float>(inv_norm), pointer<float>(factor), normalize,
                                         pointer<void>(grad), launch.stream()));
}

void similarity_lse(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                    const Tensor offset, const OptionalTensor mask, bool allow_tf32, int64_t first_row_tile,
                    int64_t first_col_tile, int64_t row_tiles, int64_t col_tiles, Tensor by_row, Tensor by_col) {
  const Launch launch(rows);
  launch.check(uniclip_cuda_similarity_lse(operand(rows, allow_tf32), pointer<void>(rows), rows.size(1),
                                           pointer<int>(ids), pointer<int>(tiles), pointer<float>(temperature),
                                           pointer<float>(offset), pointer<unsigned char>(mask), temperature.size(0),
                                           pointer<float>(by_row), pointer<float>(by_col), first_row_tile,
                                           first_col_tile, row_tiles, col_tiles, launch.stream()));
}

void merge_lse(Tensor lse, const Tensor parts) {
  const Launch launch(lse);
  launch.check(uniclip_cuda_merge_lse(pointer<float>(lse), pointer<float>(parts), parts.size(1), parts.size(0),
                                      launch.stream()));
}

void similarity_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                     const Tensor offset, const OptionalTensor mask, const Tensor lse, const Tensor coefficient,
                     bool allow_tf32, int64_t first_row_tile, int64_t first_col_tile, int64_t row_tiles,
                     int64_t col_tiles, Tensor h, Tensor parts) {
  const Launch launch(rows);
  launch.check(uniclip_cuda_similarity_grad(
      operand(rows, allow_tf32), pointer<void>(rows), rows.size(1), pointer<int>(ids), pointer<int>(tiles),
      pointer<float>(temperature), pointer<float>(offset), pointer<unsigned char>(mask), temperature.size(0),
      pointer<float>(lse), pointer<float>(coefficient), pointer<void>(h), pointer<float>(parts), first_row_tile,
      first_col_tile, row_tiles, col_tiles, launch.stream()));
}

void positives_forward(const Tensor rows, const Tensor tiles, const Tensor runs, const Tensor count,
                       const Tensor temperature, const Tensor offset, const Tensor weight, const Tensor lse,
                       Tensor loss, Tensor coefficient) {
  const Launch launch(rows);
  launch.check(uniclip_cuda_positives_forward(
      operand(rows), pointer<void>(rows), rows.size(0), rows.size(1), pointer<int>(tiles), pointer<int>(runs),
      pointer<int>(count), pointer<float>(temperature), pointer<float>(offset), pointer<float>(weight),
      temperature.size(0), pointer<float>(lse), pointer<float>(loss), pointer<float>(coefficient), launch.stream()));
}

void positives_backward(const Tensor rows, const Tensor tiles, const Tensor runs, const Tensor count,
                        const Tensor temperature, const Tensor offset, const Tensor weight, const Tensor lse,
                        const Tensor scale, OptionalTensor grad_rows, Tensor parts) {
  const Launch launch(rows);
  launch.check(uniclip_cuda_positives_backward(
      operand(rows), pointer<void>(rows), rows.size(0), rows.size(1), pointer<int>(tiles), pointer<int>(runs),
      pointer<int>(count), pointer<float>(temperature), pointer<float>(offset), pointer<float>(weight),
      temperature.size(0), pointer<float>(lse), pointer<float>(scale), pointer<float>(grad_rows), pointer<float>(parts),
      launch.stream()));
}

void similarity_matrix(const Tensor x, const Tensor y, const Tensor x_domains, const Tensor y_domains,
                       const Tensor temperature, const Tensor offset, bool allow_tf32, Tensor s) {
  const Launch launch(x);
  launch.check(uniclip_cuda_similarity_matrix(operand(x, allow_tf32), pointer<void>(x), pointer<void>(y), x.size(1),
                                              pointer<int>(x_domains), pointer<int>(y_domains),
                                              pointer<float>(temperature), pointer<float>(offset), temperature.size(0),
                                              s.size(0), s.size(1), pointer<float>(s), launch.stream()));
}

void similarity_matrix_grad(const Tensor grad, const Tensor s, const Tensor x_domains, const Tensor y_domains,
                            const Tensor temperature, Tensor g, Tensor parts) {
  const Launch launch(grad);
  STD_TORCH_CHECK(grad.stride(0) == s.stride(0), "grad and s must have one row stride");
  launch.check(uniclip_cuda_similarity_matrix_grad(
      operand(g), static_cast<const float*>(grad.data_ptr()), static_cast<const float*>(s.data_ptr()), grad.stride(0),
      pointer<int>(x_domains), pointer<int>(y_domains), pointer<float>(temperature), temperature.size(0), grad.size(0),
      grad.size(1), pointer<void>(g), g.size(0), g.size(1), pointer<float>(parts), launch.stream()));
}

void add_pair_sums(const Tensor parts, const Tensor row_domains, int64_t rows_per_domain,
                   const OptionalTensor col_domains, bool triangle, Tensor sums) {
  const Launch launch(parts);
  // Domains are the elements of a vector or the first column of a matrix.
  const int* columns = col_domains.has_value() ? static_cast<const int*>(col_domains->data_ptr()) : nullptr;
  launch.check(uniclip_cuda_add_pair_sums(
      pointer<float>(parts), parts.size(1), parts.size(2), static_cast<const int*>(row_domains.data_ptr()),
      rows_per_domain, row_domains.stride(0), columns, columns == nullptr ? 0 : col_domains->stride(0), triangle,
      sums.size(0), pointer<double>(sums), launch.stream()));
}

}  // namespace
}  // namespace uniclip::cuda

UNICLIP_FRAGMENT(UNICLIP_LIBRARY, m) {
  m.def(
      "cuda_check_values(Tensor temperature, Tensor offset, Tensor weight, Tensor? mask, Tensor? ids, int limit, "
      "Tensor(a!) valid) -> ()");
  m.def(
      "cuda_number_samples(Tensor by_sample, Tensor row, Tensor? domain_ids, int domains, Tensor(a!) domain, "
      "Tensor(b!) "
      "first, Tensor(c!) end) -> ()");
  m.def(
      "cuda_layout(Tensor domain, Tensor position, Tensor row, Tensor first, Tensor end, Tensor? starts, Tensor? mask, "
      "Tensor(a!) order, Tensor(b!) slot, Tensor(c!) ids, Tensor(d!) tiles, Tensor(e!) runs, Tensor(f!) positives) -> "
      "()");
  m.def("cuda_gather_rows(Tensor z, Tensor order, bool normalize, Tensor(a!) rows, Tensor(b!) inv_norm) -> ()");
  m.def(
      "cuda_scatter_rows(Tensor grad_rows, Tensor z, Tensor slot, Tensor inv_norm, Tensor factor, bool normalize, "
      "Tensor(a!) grad) -> ()");
  m.def(
      "cuda_similarity_lse(Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, Tensor? mask, "
      "bool "
      "allow_tf32, int first_row_tile, int first_col_tile, int row_tiles, int col_tiles, Tensor(a!) by_row, Tensor(b!) "
      "by_col) -> ()");
  m.def("cuda_merge_lse(Tensor(a!) lse, Tensor parts) -> ()");
  m.def(
      "cuda_similarity_grad(Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, Tensor? mask, "
      "Tensor lse, Tensor coefficient, bool allow_tf32, int first_row_tile, int first_col_tile, int row_tiles, int "
      "col_tiles, Tensor(a!) h, Tensor(b!) parts) -> ()");
  m.def(
      "cuda_positives_forward(Tensor rows, Tensor tiles, Tensor runs, Tensor count, Tensor temperature, Tensor offset, "
      "Tensor weight, Tensor lse, Tensor(a!) loss, Tensor(b!) coefficient) -> ()");
  m.def(
      "cuda_positives_backward(Tensor rows, Tensor tiles, Tensor runs, Tensor count, Tensor temperature, Tensor "
      "offset, "
      "Tensor weight, Tensor lse, Tensor scale, Tensor(a!)? grad_rows, Tensor(b!) parts) -> ()");
  m.def(
      "cuda_similarity_matrix(Tensor x, Tensor y, Tensor x_domains, Tensor y_domains, Tensor temperature, Tensor "
      "offset, bool allow_tf32, Tensor(a!) s) -> ()");
  m.def(
      "cuda_similarity_matrix_grad(Tensor grad, Tensor s, Tensor x_domains, Tensor y_domains, Tensor temperature, "
      "Tensor(a!) g, Tensor(b!) parts) -> ()");
  m.def(
      "cuda_add_pair_sums(Tensor parts, Tensor row_domains, int rows_per_domain, Tensor? col_domains, bool triangle, "
      "Tensor(a!) sums) -> ()");
}

UNICLIP_IMPL(UNICLIP_LIBRARY, UNICLIP_DEVICE, m) {
  using namespace uniclip::cuda;
  m.impl("cuda_check_values", TORCH_BOX(&check_values));
  m.impl("cuda_number_samples", TORCH_BOX(&number_samples));
  m.impl("cuda_layout", TORCH_BOX(&layout));
  m.impl("cuda_gather_rows", TORCH_BOX(&gather_rows));
  m.impl("cuda_scatter_rows", TORCH_BOX(&scatter_rows));
  m.impl("cuda_similarity_lse", TORCH_BOX(&similarity_lse));
  m.impl("cuda_merge_lse", TORCH_BOX(&merge_lse));
  m.impl("cuda_similarity_grad", TORCH_BOX(&similarity_grad));
  m.impl("cuda_positives_forward", TORCH_BOX(&positives_forward));
  m.impl("cuda_positives_backward", TORCH_BOX(&positives_backward));
  m.impl("cuda_similarity_matrix", TORCH_BOX(&similarity_matrix));
  m.impl("cuda_similarity_matrix_grad", TORCH_BOX(&similarity_matrix_grad));
  m.impl("cuda_add_pair_sums", TORCH_BOX(&add_pair_sums));
}
