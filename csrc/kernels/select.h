// Which instruction sets were built and can run here, and the kernel table of one of them.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace pyquant {

// Names of the usable instruction sets, best last; "reference" is always the first.
std::vector<std::string> available_isas();

// The table of instruction set `isa`; for "" the one that PYQUANT_ISA names, else the best. Throws Error for others.
KernelTable select_kernels(const std::string& isa);

// Multiply-accumulates per nanosecond of one core (the same as GMAC/s), each measured for some 20 ms: of floats on
// registers alone, and of bytes by the register tile on inputs in the first-level cache.
double measure_peak(const KernelTable& kernels);
double measure_peak8(const KernelTable& kernels);

}  // namespace pyquant
