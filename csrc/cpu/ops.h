// The operators of the CPU backend. They write into tensors that the caller allocates; uniclip_kernels/_backend.py says
// what each computes.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace uniclip::cpu {

using torch::stable::Tensor;

// precise: whether the type of `rows` holds all of them well enough; false is for fixed point alone.
void gather_rows(const Tensor z, const Tensor order, bool normalize, Tensor rows, Tensor inv_norm, Tensor precise);
void scatter_rows(const Tensor grad_rows, const Tensor z, const Tensor slot, const Tensor inv_norm, const Tensor factor,
                  bool normalize, Tensor grad);

void negatives_forward(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                       const Tensor offset, int64_t i0, int64_t i1, int64_t j0, int64_t j1, Tensor total, Tensor top,
                       Tensor kept);
void positives_forward(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                       const Tensor offset, const Tensor weight, const Tensor base, int64_t i0, int64_t i1, int64_t j0,
                       int64_t j1, const Tensor kept, Tensor lse, Tensor loss, Tensor slope, Tensor count);
void similarity_grad(const Tensor rows, const Tensor ids, const Tensor tiles, const Tensor temperature,
                     const Tensor offset, const Tensor same, const Tensor weight, bool softmax_negatives,
                     bool softmax_positives, const Tensor lse, const Tensor coefficient, const Tensor base,
                     const Tensor slope, const Tensor share, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                     const Tensor kept, Tensor sums, Tensor h, Tensor h_transposed);
void pack_rows(const Tensor rows, Tensor packed);
void accumulate(Tensor out, const Tensor a, const Tensor b);

void similarity_matrix(const Tensor x, const Tensor y, const Tensor x_domains, const Tensor y_domains,
                       const Tensor temperature, const Tensor offset, Tensor s);
void similarity_matrix_grad(const Tensor grad, const Tensor s, const Tensor x_domains, const Tensor y_domains,
                            const Tensor temperature, Tensor sums, Tensor g, Tensor g_transposed);

}  // namespace uniclip::cpu
