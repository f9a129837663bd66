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

const void* data(const OptionalTensor& t) { return t.has_value() ? t->data_ptr() : nullptr; }
int64_t stride(const OptionalTensor& t) { return t.has_value() ? t->stride(0) : 0; }

void check_values(const Tensor temperature, const Tensor offset, const Tensor weight, const OptionalTensor mask,
                  const Tensor sample_ids, const OptionalTensor domain_ids, int64_t limit, Tensor valid) {
  run(temperature, uniclip_cuda_check_values, temperature, offset, weight, mask, temperature.size(0),
      sample_ids.data_ptr(), sample_ids.stride(0), data(domain_ids), stride(domain_ids),
      domain_ids.has_value() ? domain_ids->size(0) : 0, limit, valid, valid.size(0));
}

void number_samples(const Tensor by_sample, const Tensor row, const OptionalTensor domain_ids, int64_t domains,
                    Tensor domain, Tensor first, Tensor end) {
  run(by_sample, uniclip_cuda_number_samples, by_sample, row, data(domain_ids), stride(domain_ids), by_sample.size(0),
      domains, domain, first, end);
}

void layout(const Tensor domain, const Tensor position, const Tensor row, const Tensor first, const Tensor end,
            const OptionalTensor starts, const OptionalTensor mask, Tensor order, Tensor slot, Tensor ids, Tensor tiles,
            Tensor spans) {
  run(domain, uniclip_cuda_layout, domain, position, row, first, end, starts, mask, domain.size(0), spans.size(1),
      order.size(0), order, slot, ids, tiles, spans);
}

void gather_rows(const Tensor z, const Tensor order, bool normalize, Tensor rows, Tensor inv_norm) {
  run(z, uniclip_cuda_gather_rows, operand(z), z.data_ptr(), z.stride(0), z.stride(1), z.size(1), order, rows.size(0),
      rows.size(1), normalize, rows, inv_norm);
}

void scatter_rows(const Tensor grad_rows, const Tensor z, const Tensor slot, const Tensor inv_norm, const Tensor factor,
                  bool normalize, Tensor grad) {
  run(z, uniclip_cuda_scatter_rows, operand(z), grad_rows, grad_rows.size(1), z.data_ptr(), z.stride(0), z.stride(1),
      z.size(1), slot, slot.size(0), inv_norm, factor, normalize, grad);
}

void similarity_lse(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                    const Tensor offset, const OptionalTensor mask, bool allow_tf32, int64_t first_row_tile,
                    int64_t first_col_tile, int64_t row_tiles, int64_t col_tiles, bool sigmoid, Tensor by_row,
                    Tensor by_col) {
  run(rows, uniclip_cuda_similarity_lse, similarities(rows, ids, tiles, temperature, offset, mask, allow_tf32),
      rectangle(first_row_tile, first_col_tile, row_tiles, col_tiles), sigmoid, by_row, by_col);
}

void merge_lse(Tensor lse, const Tensor parts) {
  run(lse, uniclip_cuda_merge_lse, lse, parts, parts.size(1), parts.size(0));
}

void similarity_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                     const Tensor offset, const OptionalTensor mask, bool allow_tf32, int64_t first_row_tile,
                     int64_t first_col_tile, int64_t row_tiles, int64_t col_tiles, bool sigmoid, const Tensor lse,
                     const Tensor coefficient, Tensor h, Tensor parts) {
  run(rows, uniclip_cuda_similarity_grad, similarities(rows, ids, tiles, temperature, offset, mask, allow_tf32),
      rectangle(first_row_tile, first_col_tile, row_tiles, col_tiles), sigmoid, lse, coefficient, h, parts);
}

void positives_forward(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                       const Tensor offset, const OptionalTensor mask, bool allow_tf32, const Tensor spans,
                       const Tensor weight, bool softmax, const Tensor base, int64_t slices, Tensor parts) {
  run(rows, uniclip_cuda_positives_forward, similarities(rows, ids, tiles, temperature, offset, mask, allow_tf32),
      spans, weight, softmax, base, parts.size(2), slices, parts);
}

void positives_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                    const Tensor offset, const OptionalTensor mask, bool allow_tf32, int64_t first_row_tile,
                    int64_t first_col_tile, int64_t row_tiles, int64_t col_tiles, const Tensor spans,
                    const Tensor weight, bool softmax, const Tensor base, const Tensor share, const Tensor slope,
                    int64_t slices, Tensor h, Tensor parts) {
  run(rows, uniclip_cuda_positives_grad, similarities(rows, ids, tiles, temperature, offset, mask, allow_tf32),
      rectangle(first_row_tile, first_col_tile, row_tiles, col_tiles), spans, weight, softmax, base, share, slope,
      slices, h, parts);
}

void similarity_matrix(const Tensor x, const Tensor y, const Tensor x_domains, const Tensor y_domains,
                       const Tensor temperature, const Tensor offset, bool allow_tf32, Tensor s) {
  run(x, uniclip_cuda_similarity_matrix, operand(x, allow_tf32), x, y, x.size(1), x_domains, y_domains, temperature,
      offset, temperature.size(0), s.size(0), s.size(1), s);
}

void similarity_matrix_grad(const Tensor grad, const Tensor s, const Tensor x_domains, const Tensor y_domains,
                            const Tensor temperature, Tensor g, Tensor parts) {
  STD_TORCH_CHECK(grad.stride(0) == s.stride(0), "grad and s must have one row stride");
  run(grad, uniclip_cuda_similarity_matrix_grad, operand(g), grad.data_ptr(), s.data_ptr(), grad.stride(0), x_domains,
      y_domains, temperature, temperature.size(0), grad.size(0), grad.size(1), g, g.size(0), g.size(1), parts);
}

// Domains are the elements of a vector or the first column of a matrix.
void add_pair_sums(const Tensor parts, const Tensor row_domains, const OptionalTensor col_domains, bool triangle,
                   Tensor sums) {
  run(parts, uniclip_cuda_add_pair_sums, parts, parts.size(1), parts.size(2), row_domains.data_ptr(),
      row_domains.stride(0), data(col_domains), stride(col_domains), triangle, sums.size(0), sums);
}

}  // namespace
}  // namespace uniclip::cuda

UNICLIP_FRAGMENT(UNICLIP_LIBRARY, m) {
  m.def(
      "cuda_check_values(Tensor temperature, Tensor offset, Tensor weight, Tensor? mask, Tensor sample_ids, "
      "Tensor? domain_ids, int limit, Tensor(a!) valid) -> ()");
  m.def(
      "cuda_number_samples(Tensor by_sample, Tensor row, Tensor? domain_ids, int domains, Tensor(a!) domain, "
      "Tensor(b!) first, Tensor(c!) end) -> ()");
  m.def(
      "cuda_layout(Tensor domain, Tensor position, Tensor row, Tensor first, Tensor end, Tensor? starts, Tensor? mask, "
      "Tensor(a!) order, Tensor(b!) slot, Tensor(c!) ids, Tensor(d!) tiles, Tensor(e!) spans) -> ()");
  m.def("cuda_gather_rows(Tensor z, Tensor order, bool normalize, Tensor(a!) rows, Tensor(b!) inv_norm) -> ()");
  m.def(
      "cuda_scatter_rows(Tensor grad_rows, Tensor z, Tensor slot, Tensor inv_norm, Tensor factor, bool normalize, "
      "Tensor(a!) grad) -> ()");
  m.def("cuda_similarity_lse(" UNICLIP_SIMILARITIES ", " UNICLIP_RECTANGLE
        ", bool sigmoid, Tensor(a!) by_row, Tensor(b!) by_col) -> ()");
  m.def("cuda_merge_lse(Tensor(a!) lse, Tensor parts) -> ()");
  m.def("cuda_similarity_grad(" UNICLIP_SIMILARITIES ", " UNICLIP_RECTANGLE
        ", bool sigmoid, Tensor lse, Tensor coefficient, Tensor(a!) h, Tensor(b!) parts) -> ()");
  m.def("cuda_positives_forward(" UNICLIP_SIMILARITIES
        ", Tensor spans, Tensor weight, bool softmax, Tensor base, int slices, Tensor(a!) parts) -> ()");
  m.def("cuda_positives_grad(" UNICLIP_SIMILARITIES ", " UNICLIP_RECTANGLE
        ", Tensor spans, Tensor weight, bool softmax, Tensor base, Tensor share, Tensor slope, int slices, Tensor(a!) "
        "h, Tensor(b!) parts) -> ()");
  m.def(
      "cuda_similarity_matrix(Tensor x, Tensor y, Tensor x_domains, Tensor y_domains, Tensor temperature, "
      "Tensor offset, bool allow_tf32, Tensor(a!) s) -> ()");
  m.def(
      "cuda_similarity_matrix_grad(Tensor grad, Tensor s, Tensor x_domains, Tensor y_domains, Tensor temperature, "
      "Tensor(a!) g, Tensor(b!) parts) -> ()");
  m.def(
      "cuda_add_pair_sums(Tensor parts, Tensor row_domains, Tensor? col_domains, bool triangle, Tensor(a!) sums) "
      "-> ()");
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
  m.impl("cuda_positives_grad", TORCH_BOX(&positives_grad));
  m.impl("cuda_similarity_matrix", TORCH_BOX(&similarity_matrix));
  m.impl("cuda_similarity_matrix_grad", TORCH_BOX(&similarity_matrix_grad));
  m.impl("cuda_add_pair_sums", TORCH_BOX(&add_pair_sums));
}
