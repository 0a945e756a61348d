// Single integer kernels for tests, on arrays of any alignment.
#pragma once

#include <pybind11/pybind11.h>

namespace pyquant {

void register_byte_kernels(pybind11::module_& m);

}  // namespace pyquant
