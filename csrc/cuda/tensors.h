// What registrations of operators share: from tensors to the arguments of a launcher.
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

// Makes the device of a tensor current, and knows the stream to launch on.
class Launch {
 public:
  explicit Launch(const Tensor& t) {
    if (!t.is_cuda()) return;  // emulated
    guard_.emplace(t.get_device_index());
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
  }
  void* stream() const { return stream_; }
  // Throws if a launcher failed.
  void check(int error) const { STD_TORCH_CHECK(error == 0, "CUDA kernel launch: ", uniclip_cuda_error(error)); }

 private:
  std::optional<accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

template <class T>
T* pointer(const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous(), "expected a contiguous tensor");
  return static_cast<T*>(t.data_ptr());
}
template <class T>
T* pointer(const OptionalTensor& t) {
  return t.has_value() ? pointer<T>(*t) : nullptr;
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

}  // namespace uniclip::cuda
