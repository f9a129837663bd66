// What the errors of the launchers mean, for files that know no CUDA header.
#include "launch.cuh"
#include "ops.h"

const char* uniclip_cuda_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
