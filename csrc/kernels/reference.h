// The plain C++ kernels that define what is right; every other table is tested against them.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

KernelTable reference_kernels();

}  // namespace pyquant
