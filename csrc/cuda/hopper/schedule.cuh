// How the tiles of a rectangle are dealt out: in order of rows, each block a run of tiles of about the same length.
#pragma once

namespace uniclip::cuda::hopper {

// The number of tiles times that of blocks fits an int: a rectangle has a workspace of 32 KB a tile.
struct Schedule {
  int row_tiles, col_tiles, blocks;
  bool triangle;  // only tiles on and right of the diagonal, of as many columns as rows

  // Of the row, among all tiles.
  __host__ __device__ int first_of_row(int row) const { return row * col_tiles - (triangle ? row * (row - 1) / 2 : 0); }
  __host__ __device__ int tiles() const { return first_of_row(row_tiles); }
  __host__ __device__ int first_of_block(int block) const { return block * tiles() / blocks; }
  __host__ __device__ int block_of(int tile) const { return ((tile + 1) * blocks - 1) / tiles(); }
  __host__ __device__ int row_of(int tile) const {
    if (!triangle) return tile / col_tiles;
    int low = 0, high = row_tiles;  // the row is in [low, high)
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (first_of_row(middle) <= tile ? low : high) = middle;
    }
    return low;
  }
  // A block's tiles in a row are a piece of it; pieces of a row are numbered from 0.
  __host__ __device__ int piece_of(int row, int block) const { return block - block_of(first_of_row(row)); }
  __host__ __device__ int pieces(int row) const { return piece_of(row, block_of(first_of_row(row + 1) - 1)) + 1; }
};

}  // namespace uniclip::cuda::hopper
