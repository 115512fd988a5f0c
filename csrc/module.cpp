// The Python module `_C`. Importing it registers the operators of ops.cpp; the module itself says what it was
// built for. They are apart because the pybind11 that torch 2.11 brings refuses the macro that keeps ops.cpp
// to the stable ABI.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/kernels.h"

PYBIND11_MODULE(_C, m) {
  m.def(
      "torch_version", [] { return SFRS_TORCH_VERSION; },
      "Version of the torch whose headers this was built with.");
  m.def(
      "kernels", [] { return sfrs::cpu::kernels().name; },
      "Name of the instruction set whose kernels run on a CPU.");
  m.def(
      "available_kernels",
      [] {
        std::vector<std::string> names;
        for (const sfrs::cpu::Kernels* table : sfrs::cpu::available()) names.push_back(table->name);
        return names;
      },
      "Names of all sets that this build and processor share, best first.");
  m.def("use_kernels", &sfrs::cpu::use_kernels, pybind11::arg("name"),
        "Let all operators on a CPU run the kernels of an instruction set from now on.\n\n"
        "Packed weights of `conv3x3_weight` belong to the kernels that made them.\n\n"
        "Raises:\n    ValueError: it is none of `available_kernels()`.");
#ifdef SFRS_EMULATED_KERNELS
  m.def("use_emulator_order", &sfrs::cpu::emulated::use_order, pybind11::arg("name"));
#endif
}
