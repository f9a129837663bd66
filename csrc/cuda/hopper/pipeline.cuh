// The pipeline that the kernels over tiles share on sm_90a. A block of three warpgroups takes a run of tiles.
//
//   warp 0          loads:  rows of the row tile, which stay in shared memory as long as its tiles last, and a ring of
//                           chunks of 64 columns of everything else, through the copy engine
//   warp 1          plans:  which tiles there are, what their domain pair is; writes what empty ones need
//   warp 2          helps:  prepares what the epilogue of a tile needs, where a kernel wants that
//   warpgroups 1, 2 multiply, in turns, a whole tile each: one multiplies while the other is in its epilogue
//
// A kernel is a Task: begin_piece, empty_tile, prepare and epilogue, as said at run_pipeline.
#pragma once

#include "../tile.cuh"
#include "ptx.cuh"
#include "schedule.cuh"

namespace uniclip::cuda::hopper {

constexpr int kThreads = 384, kWarpgroup = 128, kWarps = 4;  // of a block; threads and warps of a warpgroup
constexpr int kLoadRegisters = 56, kProductRegisters = 224;
constexpr int kChunk = 64, kChunkBytes = kBlock * kChunk * 2;
constexpr int kPlanned = 4;  // tiles that the plan is ahead
constexpr uint32_t kWholeWarp = 0xffffffffu;

// What the plan says of a tile.
struct alignas(16) Tile {
  enum : uint32_t {
    kFirst = 1,           // of the warpgroup in the piece: the row chunks may still be on their way
    kLast = 2,            // of the warpgroup in the piece: the row chunks may go
    kAlone = 4,           // the only one of the piece, of which the other warpgroup sees nothing
    kLoad = 8,            // first of the piece: the row chunks have to be loaded
    kOdd = 16,            // parity of the piece
    kOnlyNegatives = 32,  // see DomainPair
    kStop = 64,           // no tile: there are no more. The first of them is kFirst
  };
  int row, col;  // in the rectangle
  int piece;     // of the row
  uint32_t flags;
  float tau, scale, shift, unused;  // see DomainPair

  __device__ bool is(uint32_t flag) const { return (flags & flag) != 0; }
};

// Chunks of the row tile that stay, and stages of the ring: with up to 8 chunks all stay, with more the others come
// through the ring with each column tile.
template <bool kAllStay>
struct Shared {
  static constexpr int kResident = kAllStay ? 8 : 9, kStages = kAllStay ? 6 : 5;
  unsigned char resident[kResident][kChunkBytes], ring[kStages][kChunkBytes];
  float work[2][2][kBlock];  // of the epilogues
  float sums[2][kWarps][2];  // of the epilogues
  Tile plan[kPlanned];
  float top[2];            // of the epilogues
  int one_exponential[2];  // of the epilogues
  uint64_t full[kStages], empty[kStages], resident_full[kResident], resident_empty[kResident];
  uint64_t planned[kPlanned], plan_read[kPlanned];
  uint64_t work_free;                      // a phase a tile: its epilogue is done with `work`
  uint64_t prepared[2], prepared_read[2];  // of each warpgroup
};
static_assert(sizeof(Shared<true>) <= 232448 && sizeof(Shared<false>) <= 232448);

struct Problem {
  Similarities given;
  Rectangle rectangle;
  Schedule schedule;

  __host__ __device__ bool diagonal() const { return schedule.triangle; }
  __device__ int chunks() const { return given.d / kChunk; }
  // First slots of a tile.
  __device__ int64_t first_row(int row) const { return static_cast<int64_t>(rectangle.first_row_tile + row) * kBlock; }
  __device__ int64_t first_col(int col) const { return static_cast<int64_t>(rectangle.first_col_tile + col) * kBlock; }
  __device__ DomainPair pair(int row, int col) const {
    return DomainPair(given, rectangle.first_row_tile + row, rectangle.first_col_tile + col);
  }
};

// Spreads the chunks that do not stay evenly over all of them.
struct Streamed {
  int chunks, passing, sum = 0;
  __device__ Streamed(int chunks, int resident) : chunks(chunks), passing(chunks - resident) {}
  __device__ bool next() {
    sum += passing;
    if (sum < chunks) return false;
    sum -= chunks;
    return true;
  }
};

// A place in the ring of stages, and the parity of its use.
template <int kStages>
struct RingPlace {
  uint32_t stage, parity;
  __device__ explicit RingPlace(uint32_t used) : stage(used % kStages), parity(used / kStages & 1) {}
  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Where in a tile a thread of a warpgroup has its products: element(r, b, e) is at row(r) and col(b) + e, for 4 rows r
// and 16 pairs of columns b.
using Products = float[2][64];
struct Lane {
  int thread, warp, lane, quad_row, quad;
  __device__ Lane()
      : thread(threadIdx.x % kWarpgroup), warp(thread / 32), lane(thread % 32), quad_row(lane / 4), quad(lane % 4) {}
  __device__ static int row_of_group(int r) { return r % 2 * 8 + r / 2 * 64; }
  __device__ int row(int r) const { return warp * 16 + quad_row + row_of_group(r); }
  __device__ int col(int b) const { return b * 8 + quad * 2; }
};
__device__ __forceinline__ float& element(Products& c, int r, int b, int e) { return c[r / 2][b * 4 + r % 2 * 2 + e]; }

template <bool kAllStay>
class Pipeline {
 public:
  using Memory = Shared<kAllStay>;
  static constexpr int kResident = Memory::kResident, kStages = Memory::kStages;

  __device__ Pipeline(Memory& memory, const Problem& problem) : memory_(memory), problem_(problem) {}

  // By one thread.
  __device__ void init(int plan_readers) {
    for (int s = 0; s < kStages; ++s) {
      ptx::barrier_init(at(&memory_.full[s]), 1);
      ptx::barrier_init(at(&memory_.empty[s]), kWarps);
    }
    for (int s = 0; s < kResident; ++s) {
      ptx::barrier_init(at(&memory_.resident_full[s]), 1);
      ptx::barrier_init(at(&memory_.resident_empty[s]), 2 * kWarps);
    }
    for (int s = 0; s < kPlanned; ++s) {
      ptx::barrier_init(at(&memory_.planned[s]), 1);
      ptx::barrier_init(at(&memory_.plan_read[s]), plan_readers);
    }
    ptx::barrier_init(at(&memory_.work_free), kWarps);
    for (int w = 0; w < 2; ++w) {
      ptx::barrier_init(at(&memory_.prepared[w]), 1);
      ptx::barrier_init(at(&memory_.prepared_read[w]), kWarps);
    }
    ptx::barrier_init_fence();
  }

  // By one thread. Chunks of the row tile come just before those of the first column tile that need them.
  __device__ void load(const CUtensorMap* map) {
    RingPlace<kStages> place(0);
    const auto through_ring = [&](int column, int row) {
      ptx::wait(at(&memory_.empty[place.stage]), place.parity ^ 1);
      copy(map, memory_.ring[place.stage], column, row, &memory_.full[place.stage]);
      place.advance();
    };
    for (uint32_t t = 0;; ++t) {
      const Tile tile = planned(t);
      ptx::arrive(at(&memory_.plan_read[t % kPlanned]));
      if (tile.is(Tile::kStop)) break;
      const int row = static_cast<int>(problem_.first_row(tile.row)),
                col = static_cast<int>(problem_.first_col(tile.col));
      Streamed streamed(problem_.chunks(), kResident);
      for (int chunk = 0, stays = 0; chunk < problem_.chunks(); ++chunk) {
        if (!kAllStay && streamed.next()) {
          through_ring(chunk * kChunk, row);
        } else {
          if (tile.is(Tile::kLoad)) {
            ptx::wait(at(&memory_.resident_empty[stays]), tile.is(Tile::kOdd) ? 0 : 1);
            copy(map, memory_.resident[stays], chunk * kChunk, row, &memory_.resident_full[stays]);
          }
          ++stays;
        }
        through_ring(chunk * kChunk, col);
      }
    }
  }

  // By one warp. Pieces come from the last to the first: of the rows that a block has a part of, the last is begun at
  // its first column, so that blocks read about the same columns at a time.
  template <class Task>
  __device__ void plan(const Task& task) {
    const int lane = threadIdx.x % 32, block = static_cast<int>(blockIdx.x);
    const Schedule& schedule = problem_.schedule;
    const int begin = schedule.first_of_block(block);
    uint32_t t = 0, parity = 0;
    for (int end = schedule.first_of_block(block + 1); end > begin;) {
      const int row = schedule.row_of(end - 1), row_begin = schedule.first_of_row(row);
      const int piece_begin = max(begin, row_begin);
      const int first_col = piece_begin - row_begin + (schedule.triangle ? row : 0);
      const int end_col = first_col + end - piece_begin;
      const int piece = schedule.piece_of(row, block);
      end = piece_begin;
      task.begin_piece(row, piece, lane);
      __syncwarp();  // one lane tells of it for all
      int count = 0;
      for (int col = first_col + lane; col - lane < end_col; col += 32) {
        count += __popc(__ballot_sync(kWholeWarp, col < end_col && problem_.pair(row, min(col, end_col - 1)).live));
      }
      int index = 0;
      for (int base = first_col; base < end_col; base += 32) {
        const int col = base + lane;
        const bool inside = col < end_col;
        const DomainPair pair = problem_.pair(row, min(col, end_col - 1));
        for (uint32_t rest = __ballot_sync(kWholeWarp, inside && !pair.live); rest != 0; rest &= rest - 1) {
          task.empty_tile(row, base + __ffs(rest) - 1, lane);
        }
        for (uint32_t rest = __ballot_sync(kWholeWarp, inside && pair.live); rest != 0; rest &= rest - 1) {
          if (lane == __ffs(rest) - 1) {
            uint32_t flags = pair.only_negatives ? Tile::kOnlyNegatives : 0;
            if (index == 0) flags |= Tile::kLoad;
            if (index < 2) flags |= Tile::kFirst;
            if (index >= count - 2) flags |= Tile::kLast;
            if (count == 1) flags |= Tile::kAlone;
            if (parity != 0) flags |= Tile::kOdd;
            announce(t, Tile{row, col, piece, flags, pair.tau, pair.scale, pair.shift, 0});
          }
          __syncwarp();
          ++index;
          ++t;
        }
      }
      if (count > 0) parity ^= 1;
    }
    if (lane < 2) announce(t + lane, Tile{0, 0, 0, Tile::kStop | (lane == 0 ? Tile::kFirst : 0), 1, 1, 0, 0});
  }

  // Calls f(t, tile) for each tile of the warp, one in `every` from the one `first` on. Returns the number of all tiles
  // if the next one would have been the warp's, else 0.
  template <class F>
  __device__ uint32_t for_tiles(uint32_t first, uint32_t every, const F& f) {
    for (uint32_t t = first;; t += every) {
      const Tile tile = planned(t);
      if (tile.is(Tile::kStop)) return tile.is(Tile::kFirst) ? t : 0;
      f(t, tile);
      __syncwarp();
      if (threadIdx.x % 32 == 0) ptx::arrive(at(&memory_.plan_read[t % kPlanned]));
    }
  }

  // c = products of a tile, by one warpgroup.
  template <class E>
  __device__ void multiply(uint32_t t, uint32_t flags, Products& c) {
    const bool speaks = threadIdx.x % 32 == 0;
    const int chunks = problem_.chunks();
    // Lower halves of descriptors of operands, which hold their address; the upper ones say that there are 1024 bytes
    // from 8 rows to the next, swizzled in 128 bytes.
    constexpr uint64_t kForm = (1ull << 30 | 1024 >> 4) << 32;
    const uint32_t resident = 1 << 16 | (at(memory_.resident) >> 4 & 0x3fff);
    const uint32_t ring = 1 << 16 | (at(memory_.ring) >> 4 & 0x3fff);
    constexpr uint32_t kNext = kChunkBytes >> 4, kLower = kNext / 2;  // the next chunk, the lower half of a row tile
    RingPlace<kStages> place(t * static_cast<uint32_t>(chunks + max(chunks - kResident, 0)));
#pragma unroll
    for (int i = 0; i < 64; ++i) c[0][i] = c[1][i] = 0;
    if (t > 0) take_turn(t);
    Streamed streamed(chunks, kResident);
    constexpr uint32_t kNone = ~0u;
    uint32_t last_a = kNone, last_b = kNone, last_stay = kNone;  // what the chunk before is read from
    const auto release = [&] {
      if (!speaks) return;
      if (!kAllStay && last_a != kNone) ptx::arrive(at(&memory_.empty[last_a]));
      ptx::arrive(at(&memory_.empty[last_b]));
      if ((flags & Tile::kLast) != 0 && last_stay != kNone) {
        ptx::arrive(at(&memory_.resident_empty[last_stay]), (flags & Tile::kAlone) != 0 ? 2 : 1);
      }
    };
    uint32_t stays = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      uint32_t from_a = kNone, stay = kNone;
      if (!kAllStay && streamed.next()) {
        from_a = place.stage;
        ptx::wait(at(&memory_.full[place.stage]), place.parity);
        place.advance();
      } else {
        stay = stays++;
        if ((flags & Tile::kFirst) != 0) {
          ptx::wait(at(&memory_.resident_full[stay]), (flags & Tile::kOdd) != 0 ? 1 : 0);
        }
      }
      ptx::wait(at(&memory_.full[place.stage]), place.parity);
      const uint32_t a = !kAllStay && from_a != kNone ? ring + from_a * kNext : resident + stay * kNext;
      const uint32_t b = ring + place.stage * kNext;
      ptx::products_begin();
#pragma unroll
      for (int k = 0; k < kChunk / 16; ++k) {
        ptx::multiply<E>(c[0], kForm | (a + k * 2), kForm | (b + k * 2));
        ptx::multiply<E>(c[1], kForm | (a + kLower + k * 2), kForm | (b + k * 2));
        // While there is work left: the other warpgroup's products line up behind it. All that this one will read has
        // landed, so that no barrier of the ring is ever two phases ahead.
        if (k == 1 && chunk == chunks - 1) ptx::hand_over(turn_of(t + 1));
      }
      ptx::products_commit();
      ptx::products_wait<1>();
      if (chunk > 0) release();
      last_a = from_a;
      last_b = place.stage;
      last_stay = stay;
      place.advance();
    }
    ptx::products_wait<0>();
    ptx::settle(c[0]);
    ptx::settle(c[1]);
    release();
  }

  // Waits until the warpgroup of the tile before this one is about to be done with its products.
  static __device__ __forceinline__ void take_turn(uint32_t t) { ptx::take_over(turn_of(t)); }

  __device__ __forceinline__ Tile planned(uint32_t t) {
    ptx::wait(at(&memory_.planned[t % kPlanned]), t / kPlanned & 1);
    return memory_.plan[t % kPlanned];
  }

  static __device__ __forceinline__ uint32_t at(const void* p) { return ptx::shared_address(p); }

 private:
  static __device__ __forceinline__ int turn_of(uint32_t t) { return 3 + static_cast<int>(t & 1); }
  __device__ __forceinline__ void announce(uint32_t t, const Tile& tile) {
    ptx::wait(at(&memory_.plan_read[t % kPlanned]), (t / kPlanned & 1) ^ 1);
    memory_.plan[t % kPlanned] = tile;
    ptx::arrive(at(&memory_.planned[t % kPlanned]));
  }
  static __device__ __forceinline__ void copy(const CUtensorMap* map, unsigned char* to, int column, int row,
                                              uint64_t* barrier) {
    ptx::arrive_and_expect(at(barrier), kChunkBytes);
    ptx::copy_block(at(to), map, column, row, at(barrier));
  }

  Memory& memory_;
  const Problem& problem_;
};

// Runs a task over the tiles of a block. The planning warp calls begin_piece(row, piece, lane) before the tiles of a
// piece, and empty_tile(row, col, lane) for those without negatives; one warp calls prepare(t, tile) for
// every other tile, if the task kPrepares; and a warpgroup calls epilogue(t, tile, products).
template <class Task, class E, bool kAllStay>
__device__ __forceinline__ void run_pipeline(const CUtensorMap& map, const Problem& problem, Shared<kAllStay>& memory,
                                             Task task) {
  Pipeline<kAllStay> pipeline(memory, problem);
  const int warpgroup = __shfl_sync(kWholeWarp, static_cast<int>(threadIdx.x / kWarpgroup), 0);
  const int warp = __shfl_sync(kWholeWarp, static_cast<int>(threadIdx.x / 32), 0);
  if (threadIdx.x == 0) {
    pipeline.init(kWarps + 1 + (Task::kPrepares ? 1 : 0));
    ptx::prefetch_map(&map);
  }
  __syncthreads();
  if (warpgroup == 0) {
    ptx::fewer_registers<kLoadRegisters>();
    if (warp == 0) {
      if (threadIdx.x == 0) pipeline.load(&map);
      __syncwarp();
    } else if (warp == 1) {
      pipeline.plan(task);
    } else if (warp == 2 && Task::kPrepares) {
      pipeline.for_tiles(0, 1, [&](uint32_t t, const Tile& tile) { task.prepare(t, tile); });
    }
  } else {
    ptx::more_registers<kProductRegisters>();
    const uint32_t tiles = pipeline.for_tiles(warpgroup - 1, 2, [&](uint32_t t, const Tile& tile) {
      Products c;
      pipeline.template multiply<E>(t, __shfl_sync(kWholeWarp, tile.flags, 0), c);
      task.epilogue(t, pipeline.planned(t), c);  // read again: no register holds it meanwhile
    });
    if (tiles > 0) pipeline.take_turn(tiles);  // which the last tile has handed over
  }
}

}  // namespace uniclip::cuda::hopper
