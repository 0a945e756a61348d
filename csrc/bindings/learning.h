// The inner loops of the learner.
#pragma once

#include <pybind11/pybind11.h>

namespace pyquant {

void register_learning(pybind11::module_& m);

}  // namespace pyquant
