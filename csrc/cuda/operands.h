// Types of the rows that are multiplied.
#pragma once

namespace uniclip::cuda {

enum class Operand : int { kBFloat16, kHalf, kFloat, kTF32 };  // kTF32: float32 rows, multiplied as TF32

}  // namespace uniclip::cuda
