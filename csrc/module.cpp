// uniclip_kernels._C: importing it registers the operators; its attributes are facts about the build and the processor.
#include <pybind11/pybind11.h>

#include "cpu/gemm.h"
#include "cpu/ops.h"
#include "cpu/panel.h"
#include "cpu/tile_kernels.h"

PYBIND11_MODULE(_C, m) {
  m.attr("cpu_block") = uniclip::kBlock;
  m.attr("cpu_tile") = uniclip::cpu::kTile;
  m.attr("cpu_spare") = uniclip::cpu::kSpare;
  m.attr("compiler") = UNICLIP_COMPILER;
  m.attr("torch_version") = UNICLIP_TORCH_VERSION;
  m.def("cpu_instruction_set", &uniclip::instruction_set);
  m.def("cpu_bfloat16_products", &uniclip::bfloat16_products);
}
