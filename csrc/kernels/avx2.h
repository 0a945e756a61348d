// The kernels for AVX2 with FMA.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Return `table` with each entry replaced that AVX2 does better.
KernelTable improve_with_avx2(KernelTable table);

}  // namespace pyquant
