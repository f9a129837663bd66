// What launchers and kernels are given: plain structs, passed by value.
#pragma once

#include <cstdint>

namespace uniclip::cuda {

// Types of the rows that are multiplied.
enum class Operand : int { kBFloat16, kHalf, kFloat, kTF32 };  // kTF32: float32 rows, multiplied as TF32

// Of the layout, as _layout.py makes them: T tiles of 128 slots each.
struct alignas(16) LayoutTile {
  int domain, filled, first, last;
};
struct alignas(8) Span {
  int start, end;  // tiles
};

// Rows, and how they are compared. K is `domains`.
struct Similarities {
  const void* rows;                   // (slots, d)
  const int* ids;                     // (slots,): sample numbers, -1 for an empty slot
  const LayoutTile* tiles;            // (T,)
  const float *temperature, *offset;  // (K, K)
  const unsigned char* mask;          // (K, K), or null
  int64_t slots;                      // 128 T
  int d;                              // padded number of columns
  int domains;
  Operand operand;  // of the rows
};

// A part of the matrix of tiles, in tiles. On the diagonal both first ones are the same, and only unordered pairs
// meant.
struct Rectangle {
  int first_row_tile, first_col_tile, row_tiles, col_tiles;
};

}  // namespace uniclip::cuda
