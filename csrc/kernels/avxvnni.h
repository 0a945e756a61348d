// The integer kernels for AVX2 with VNNI, which processors have that lack AVX-512.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Return `table` with its integer kernels replaced.
KernelTable improve_with_avxvnni(KernelTable table);

}  // namespace pyquant
