// What registrations of operators share: from tensors to the call of a launcher.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "ops.h"

// PyTorch's header has it for those who define USE_CUDA; a handle from the accelerator's stream came with 2.13.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace uniclip::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
namespace accelerator = torch::stable::accelerator;

template <class T>
T* pointer(const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous(), "expected a contiguous tensor");
  return static_cast<T*>(t.data_ptr());
}
template <class T>
T* pointer(const OptionalTensor& t) {
  return t.has_value() ? pointer<T>(*t) : nullptr;
}

// An argument of a launcher: the data of a contiguous tensor, or a number or address.
template <class P, class A>
P argument(const A& from) {
  if constexpr (std::is_same_v<A, Tensor> || std::is_same_v<A, OptionalTensor>) {
    return pointer<std::remove_pointer_t<P>>(from);
  } else {
    return static_cast<P>(from);
  }
}
template <class... Parameters, class... Arguments>
int call(int (*launcher)(Parameters...), const Arguments&... arguments) {
  return launcher(argument<Parameters>(arguments)...);
}

// Calls a launcher on the device of a tensor, with its current stream for the last argument.
template <class F, class... Arguments>
void run(const Tensor& on, F launcher, const Arguments&... arguments) {
  std::optional<accelerator::DeviceGuard> guard;
  void* stream = nullptr;
  if (on.is_cuda()) {  // else it is emulated
    guard.emplace(on.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  }
  const int error = call(launcher, arguments..., stream);
  STD_TORCH_CHECK(error == 0, "CUDA kernel launch: ", uniclip_cuda_error(error));
}

inline Operand operand(const Tensor& rows, bool allow_tf32 = false) {
  switch (rows.scalar_type()) {
    case ScalarType::BFloat16:
      return Operand::kBFloat16;
    case ScalarType::Half:
      return Operand::kHalf;
    default:
      STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Float, "rows must be float32, bfloat16 or float16");
      return allow_tf32 ? Operand::kTF32 : Operand::kFloat;
  }
}

// What operators over tiles begin with, in their schemas, and as the launchers take it.
#define UNICLIP_SIMILARITIES \
  "Tensor rows, Tensor ids, Tensor tiles, Tensor temperature, Tensor offset, Tensor? mask, bool allow_tf32"
#define UNICLIP_RECTANGLE "int first_row_tile, int first_col_tile, int row_tiles, int col_tiles"

inline Similarities similarities(const Tensor& rows, const Tensor& ids, const Tensor& tiles, const Tensor& temperature,
                                 const Tensor& offset, const OptionalTensor& mask, bool allow_tf32) {
  return {pointer<void>(rows),
          pointer<int>(ids),
          pointer<LayoutTile>(tiles),
          pointer<float>(temperature),
          pointer<float>(offset),
          pointer<unsigned char>(mask),
          rows.size(0),
          static_cast<int>(rows.size(1)),
          static_cast<int>(temperature.size(0)),
          operand(rows, allow_tf32)};
}
inline Rectangle rectangle(int64_t first_row_tile, int64_t first_col_tile, int64_t row_tiles, int64_t col_tiles) {
  return {static_cast<int>(first_row_tile), static_cast<int>(first_col_tile), static_cast<int>(row_tiles),
          static_cast<int>(col_tiles)};
}

}  // namespace uniclip::cuda
