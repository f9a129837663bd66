// Typed views of the stable tensors that the operators receive, and dispatch over element types.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <utility>

#include "types.h"

namespace uniclip {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A dense matrix with unit column stride.
template <class T>
struct Matrix {
  T* data;
  int64_t rows, cols, stride;
  T* operator[](int64_t i) const { return data + i * stride; }
};

template <class T>
Matrix<T> matrix(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 2 && (t.stride(1) == 1 || t.size(1) <= 1), "expected a matrix with unit column stride");
  return {static_cast<T*>(t.data_ptr()), t.size(0), t.size(1), t.stride(0)};
}
template <class T>
T* vector(const Tensor& t) {
  STD_TORCH_CHECK(t.is_contiguous(), "expected a contiguous tensor");
  return static_cast<T*>(t.data_ptr());
}

template <class T>
struct Type {
  using type = T;
};

// f(Type<C>{}) for the compute type of `rows`.
template <class F>
void dispatch_compute(const Tensor& rows, const F& f) {
  switch (rows.scalar_type()) {
    case ScalarType::Float:
      return f(Type<float>{});
    case ScalarType::Double:
      return f(Type<double>{});
    case ScalarType::BFloat16:
      return f(Type<bfloat16>{});
    case ScalarType::Short:
      return f(Type<fixed16>{});
    default:
      STD_TORCH_CHECK(false, "rows must be float32, float64, bfloat16 or int16 (fixed point)");
  }
}

// f(Type<In>{}, Type<C>{}) for the user's type and the compute type that it may have.
template <class F>
void dispatch_rows(const Tensor& z, const Tensor& rows, const F& f) {
  switch (z.scalar_type()) {
    case ScalarType::Double:
      return f(Type<double>{}, Type<double>{});
    case ScalarType::Float:
      return f(Type<float>{}, Type<float>{});
    case ScalarType::Half:
      return f(Type<half>{}, Type<float>{});
    case ScalarType::BFloat16:
      switch (rows.scalar_type()) {
        case ScalarType::BFloat16:
          return f(Type<bfloat16>{}, Type<bfloat16>{});
        case ScalarType::Short:
          return f(Type<bfloat16>{}, Type<fixed16>{});
        default:
          return f(Type<bfloat16>{}, Type<float>{});
      }
    default:
      STD_TORCH_CHECK(false, "embeddings must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace uniclip
