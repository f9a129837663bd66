// Launchers of the kernels for compute capability 9.0, as those of ops.h, for rows of bfloat16 or float16 whose padded
// number of columns is a multiple of 64. `blocks` is at most the number of tiles, and as many as run at a time.
#pragma once

#include <cstdint>

#include "../operands.h"

extern "C" {

// Adds the negatives of the rectangle to the running natural lse of its rows and columns. On the diagonal only tiles on
// and right of it are computed. row_parts: (2 * pieces, row_tiles * 128) for as many pieces as a row of tiles is
// dealt out in, see Schedule; by_col: (row_tiles, col_tiles * 128).
int uniclip_cuda_hopper_lse(uniclip::cuda::Similarities given, uniclip::cuda::Rectangle rectangle, float* lse,
                            float* row_parts, float* by_col, int blocks, void* stream);
// As uniclip_cuda_similarity_grad, for the softmax alone, as all of these are.
int uniclip_cuda_hopper_grad(uniclip::cuda::Similarities given, uniclip::cuda::Rectangle rectangle, const float* lse,
                             const float* coefficient, void* h, float* parts, int blocks, void* stream);

}  // extern "C"
