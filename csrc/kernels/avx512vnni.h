// The integer kernels for AVX-512 with VNNI.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Return `table` with its integer kernels replaced.
KernelTable improve_with_avx512vnni(KernelTable table);

}  // namespace pyquant
