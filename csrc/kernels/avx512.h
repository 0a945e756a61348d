// The kernels for AVX-512 (F, BW, DQ, VL).
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Return `table` with each entry replaced that AVX-512 does better.
KernelTable improve_with_avx512(KernelTable table);

}  // namespace pyquant
