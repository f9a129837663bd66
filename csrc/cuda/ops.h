// The launchers of the CUDA kernels: raw device pointers and a cudaStream_t, no type of PyTorch, so that they can be
// built by nvcc and by a C++ compiler alike. uniclip_kernels/_backend.py and _gpu.py say what each computes; K is
// `domains`, (K, K) tables are contiguous, `d` is the padded number of columns. Each returns a cudaError_t.
#pragma once

#include <cstdint>

#include "operands.h"

extern "C" {

const char* uniclip_cuda_error(int error);

// valid[block], of `blocks` that have 256 entries each: whether the (K, K) tables and the `count` domain ids hold what
// _checks.py wants of them; mask and domain_ids may be null. A domain id beside a negative sample id may be anything.
int uniclip_cuda_check_values(const float* temperature, const float* offset, const float* weight,
                              const unsigned char* mask, int domains, const int64_t* sample_ids, int64_t sample_stride,
                              const int64_t* domain_ids, int64_t domain_stride, int64_t count, int64_t limit,
                              bool* valid, int64_t blocks, void* stream);
// Of `count` sample ids in ascending order, and the rows they come from: their domain, K for a negative id, and where
// the run of equal ids begins and ends. domain_ids may be null.
int uniclip_cuda_number_samples(const int64_t* by_sample, const int64_t* row, const int64_t* domain_ids, int64_t stride,
                                int count, int domains, short* domain, int* first, int* end, void* stream);
// The Layout of _layout.py, from those domains in ascending order and the position that each had before. starts (K +
// 1,) and mask may be null.
int uniclip_cuda_layout(const short* domain, const int64_t* position, const int64_t* row, const int* first,
                        const int* end, const int64_t* starts, const unsigned char* mask, int count, int domains,
                        int64_t slots, int64_t* order, int64_t* slot, int* ids, uniclip::cuda::LayoutTile* tiles,
                        uniclip::cuda::Span* spans, void* stream);

// z: (any, columns) elements at the given strides. rows: (slots, d).
int uniclip_cuda_gather_rows(uniclip::cuda::Operand operand, const void* z, int64_t row_stride, int64_t column_stride,
                             int columns, const int64_t* order, int64_t slots, int d, bool normalize, void* rows,
                             float* inv_norm, void* stream);
// grad_rows: (R, d). grad: (count, columns), contiguous.
int uniclip_cuda_scatter_rows(uniclip::cuda::Operand operand, const float* grad_rows, int d, const void* z,
                              int64_t row_stride, int64_t column_stride, int columns, const int64_t* slot,
                              int64_t count, const float* inv_norm, const float* factor, bool normalize, void* grad,
                              void* stream);

// by_row: (col_tiles, row_tiles * 128), by_col: (row_tiles, col_tiles * 128), base-2 logarithms; for the sigmoid two
// such planes each, of natural sums and of the largest s.
int uniclip_cuda_similarity_lse(uniclip::cuda::Similarities given, uniclip::cuda::Rectangle rectangle, bool sigmoid,
                                float* by_row, float* by_col, void* stream);
// lse: natural, `slots` of them. parts: (count, slots).
int uniclip_cuda_merge_lse(float* lse, const float* parts, int64_t slots, int count, void* stream);
// lse, coefficient: (slots,). h: (row_tiles * 128, col_tiles * 128). parts: (2, row_tiles, col_tiles).
int uniclip_cuda_similarity_grad(uniclip::cuda::Similarities given, uniclip::cuda::Rectangle rectangle, bool sigmoid,
                                 const float* lse, const float* coefficient, void* h, float* parts, void* stream);

// Loss, slope and count of each of the first `own_slots` slots, as parts (3, slices * 4, own_slots) of sums: `slices`
// blocks share out the tiles that the spans (T, K) of a tile name. weight: (K, K). For the softmax, which has no use
// for base, a fourth one, s, and the loss in natural logarithms of parts.
int uniclip_cuda_positives_forward(uniclip::cuda::Similarities given, const uniclip::cuda::Span* spans,
                                   const float* weight, bool softmax, const float* base, int64_t own_slots, int slices,
                                   float* parts, void* stream);
// Those elements of h where positives are, and those of parts whose tiles may hold some; both as similarity_grad's. The
// sigmoid has no use for slope.
int uniclip_cuda_positives_grad(uniclip::cuda::Similarities given, uniclip::cuda::Rectangle rectangle,
                                const uniclip::cuda::Span* spans, const float* weight, bool softmax, const float* base,
                                const float* share, const float* slope, int slices, void* h, float* parts,
                                void* stream);

// s: (x_count, y_count), contiguous; x and y: that many rows, padded to whole tiles.
int uniclip_cuda_similarity_matrix(uniclip::cuda::Operand operand, const void* x, const void* y, int d,
                                   const int* x_domains, const int* y_domains, const float* temperature,
                                   const float* offset, int domains, int64_t x_count, int64_t y_count, float* s,
                                   void* stream);
// grad and s: (x_count, y_count), their rows `stride` apart. g: (g_rows, g_cols). parts: (2, x_count, K).
int uniclip_cuda_similarity_matrix_grad(uniclip::cuda::Operand operand, const float* grad, const float* s,
                                        int64_t stride, const int* x_domains, const int* y_domains,
                                        const float* temperature, int domains, int64_t x_count, int64_t y_count,
                                        void* g, int64_t g_rows, int64_t g_cols, float* parts, void* stream);

// sums[a, b, 0 and 1] += Σ parts[0 and 1, r, c] over the r of domain a and c of domain b, for sums (K, K, 2). The
// domain of r is row_domains[r * row_stride]; that of c col_domains[c * col_stride], or c itself if that is null. With
// `triangle` only r <= c are there.
int uniclip_cuda_add_pair_sums(const float* parts, int64_t rows, int64_t cols, const int* row_domains,
                               int64_t row_stride, const int* col_domains, int64_t col_stride, bool triangle,
                               int domains, double* sums, void* stream);

}  // extern "C"
