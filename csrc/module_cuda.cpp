// The Python module `_C_cuda`. Importing it registers the kernels of ops_cuda.cpp; the module itself says
// what they were compiled for. They are apart as in module.cpp.

#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C_cuda, m) {
  m.def(
      "architectures", [] { return SFRS_CUDA_ARCHS; },
      "What the kernels were compiled for, as CMake writes it.");
  m.def("compiler", [] { return SFRS_CUDA_COMPILER; }, "Version of the CUDA compiler.");
}
