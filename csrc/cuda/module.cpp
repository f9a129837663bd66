// uniclip_kernels._cuda: importing it registers the operators of the CUDA backend; its attributes are facts about the
// build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

PYBIND11_MODULE(_cuda, m) {
  m.attr("architectures") = std::vector<int>{UNICLIP_CUDA_ARCHITECTURES};
  m.attr("cuda_version") = UNICLIP_CUDA_VERSION;
  m.attr("torch_version") = UNICLIP_TORCH_VERSION;
}
