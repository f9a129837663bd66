// uniclip_kernels._cuda: importing it registers the operators of the CUDA backend; its attributes are facts about the
// build.
#include <cxxabi.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

namespace {

struct Kernel {
  const char* name;
  int architecture, registers, stack_bytes;
};
constexpr Kernel kKernels[] = {
#include "kernels.inc"  // setup.py writes it
};

std::string demangled(const char* name) {
  const std::unique_ptr<char, void (*)(void*)> text(abi::__cxa_demangle(name, nullptr, nullptr, nullptr), std::free);
  return text ? text.get() : name;
}

// (name, architecture, registers of a thread, bytes of its stack) of every kernel.
std::vector<std::tuple<std::string, int, int, int>> kernels() {
  std::vector<std::tuple<std::string, int, int, int>> all;
  for (const Kernel& k : kKernels) all.emplace_back(demangled(k.name), k.architecture, k.registers, k.stack_bytes);
  return all;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.attr("architectures") = std::vector<int>{UNICLIP_CUDA_ARCHITECTURES};
  m.attr("cuda_version") = UNICLIP_CUDA_VERSION;
  m.attr("torch_version") = UNICLIP_TORCH_VERSION;
  m.attr("kernels") = kernels();
}
