// The integer kernels for AVX2 with AVX-VNNI, which processors without AVX-512 may have.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Whether this processor, which has AVX2, has AVX-VNNI too.
bool runs_avxvnni();

// Return `table` with its integer kernels replaced.
KernelTable improve_with_avxvnni(KernelTable table);

}  // namespace pyquant
