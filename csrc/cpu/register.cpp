// Schemas and CPU kernels of the primitives, through PyTorch's stable ABI. The public operators are defined in Python.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY_FRAGMENT(uniclip_kernels, m) {
  m.def(
      "cpu_gather_rows(Tensor z, Tensor order, bool normalize, Tensor(a!) rows, Tensor(b!) inv_norm, Tensor(c!) "
      "precise) -> ()");
  m.def(
      "cpu_scatter_rows(Tensor grad_rows, Tensor z, Tensor slot, Tensor inv_norm, Tensor factor, bool normalize, "
      "Tensor(a!) grad) -> ()");
  m.def(
      "cpu_negatives_forward(Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, int i0, int i1, "
      "int j0, int j1, Tensor(a!) total, Tensor(b!) top, Tensor(c!) kept) -> ()");
  m.def(
      "cpu_positives_forward(Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, Tensor weight, "
      "Tensor base, int i0, int i1, int j0, int j1, Tensor kept, Tensor(a!) lse, Tensor(b!) loss, Tensor(c!) slope, "
      "Tensor(d!) count) -> ()");
  m.def(
      "cpu_similarity_grad(Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, Tensor same, "
      "Tensor weight, bool softmax_negatives, bool softmax_positives, Tensor lse, Tensor coefficient, Tensor base, "
      "Tensor slope, Tensor share, int i0, int i1, int j0, int j1, Tensor kept, Tensor(a!) sums, Tensor(b!) h, "
      "Tensor(c!) h_transposed) -> ()");
  m.def("cpu_pack_rows(Tensor rows, Tensor(a!) packed) -> ()");
  m.def("cpu_accumulate(Tensor(a!) out, Tensor a, Tensor b) -> ()");
  m.def(
      "cpu_similarity_matrix(Tensor x, Tensor y, Tensor x_domains, Tensor y_domains, Tensor temperature, Tensor "
      "offset, "
      "Tensor(a!) s) -> ()");
  m.def(
      "cpu_similarity_matrix_grad(Tensor grad, Tensor s, Tensor x_domains, Tensor y_domains, Tensor temperature, "
      "Tensor(a!) sums, Tensor(b!) g, Tensor(c!) g_transposed) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(uniclip_kernels, CPU, m) {
  using namespace uniclip::cpu;
  m.impl("cpu_gather_rows", TORCH_BOX(&gather_rows));
  m.impl("cpu_scatter_rows", TORCH_BOX(&scatter_rows));
  m.impl("cpu_negatives_forward", TORCH_BOX(&negatives_forward));
  m.impl("cpu_positives_forward", TORCH_BOX(&positives_forward));
  m.impl("cpu_similarity_grad", TORCH_BOX(&similarity_grad));
  m.impl("cpu_pack_rows", TORCH_BOX(&pack_rows));
  m.impl("cpu_accumulate", TORCH_BOX(&accumulate));
  m.impl("cpu_similarity_matrix", TORCH_BOX(&similarity_matrix));
  m.impl("cpu_similarity_matrix_grad", TORCH_BOX(&similarity_matrix_grad));
}
