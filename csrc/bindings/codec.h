// The entropy coder, on packed codes.
#pragma once

#include <pybind11/pybind11.h>

namespace pyquant {

void register_codec(pybind11::module_& m);

}  // namespace pyquant
