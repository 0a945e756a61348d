// Pictures and masks of detectors, as arrays.
#pragma once

#include <pybind11/pybind11.h>

namespace pyquant {

void register_pictures(pybind11::module_& m);

}  // namespace pyquant
