// The kernel that looks bytes up in registers, for AVX-512 with VBMI.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Return `table` with shuffle_tile8.
KernelTable improve_with_avx512vbmi(KernelTable table);

}  // namespace pyquant
