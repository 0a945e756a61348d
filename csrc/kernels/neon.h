// The kernels for NEON, the vectors that every AArch64 processor has.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Return `table` with each entry replaced that NEON does better.
KernelTable improve_with_neon(KernelTable table);

}  // namespace pyquant
