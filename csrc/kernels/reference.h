// The plain C++ kernels that define what is right; every other table is tested against them.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

KernelTable reference_kernels();

// Return `table` with its integer kernels.
KernelTable with_reference_bytes(KernelTable table);

}  // namespace pyquant
