// From the arguments of a launcher to those of its kernel.
#pragma once

#include "../launch.cuh"
#include "pipeline.cuh"

namespace uniclip::cuda::hopper {

// The map by which the copy engine finds blocks of 128 rows and 64 columns.
template <class E>
cudaError_t map_rows(CUtensorMap& map, const Similarities& given) {
  // From the driver by its name, so that the extension loads where there is none.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(given.d), static_cast<cuuint64_t>(given.slots)};
  const cuuint64_t stride = static_cast<cuuint64_t>(given.d) * sizeof(E);
  const cuuint32_t block[] = {kChunk, kBlock}, steps[] = {1, 1};
  const auto type = std::is_same_v<E, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult result =
      encode(&map, type, 2, const_cast<void*>(given.rows), sizes, &stride, block, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

inline Problem problem_of(const Similarities& given, const Rectangle& rectangle, int blocks) {
  const bool diagonal = rectangle.first_row_tile == rectangle.first_col_tile;
  return {given, rectangle, {rectangle.row_tiles, rectangle.col_tiles, blocks, diagonal}};
}

// Calls f(E{}, all_stay, map) with the type of elements, and whether a row tile fits into shared memory: a constant.
template <class F>
int with_kind(const Similarities& given, const F& f) {
  const auto with_type = [&](auto element) -> int {
    CUtensorMap map;
    const cudaError_t mapped = map_rows<decltype(element)>(map, given);
    if (mapped != cudaSuccess) return mapped;
    const bool all_stay = given.d / kChunk <= Shared<true>::kResident;
    return all_stay ? f(element, std::true_type{}, map) : f(element, std::false_type{}, map);
  };
  if (given.operand == Operand::kBFloat16) return with_type(__nv_bfloat16{});
  if (given.operand == Operand::kHalf) return with_type(__half{});
  return cudaErrorNotSupported;
}

}  // namespace uniclip::cuda::hopper
