// The matrix paths for AMX, which multiplies 16 x 64 bytes with 64 x 16 in one instruction.
#pragma once

#include "kernels/kernels.h"

namespace pyquant {

// Whether this processor has AMX and the operating system lets this process use it, which is asked for here.
bool runs_amx();

// Return `table` with its kernels for matrices replaced.
KernelTable improve_with_amx(KernelTable table);

}  // namespace pyquant
