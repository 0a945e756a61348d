// The tests of all kernels, a list for each file of them.
#pragma once

#include <span>

#include "check.h"
#include "kernels/kernels.h"

namespace pyquant {

// A kernel of the table, by its name there, and what compares it with the reference; throws Failure where they differ.
struct KernelTest {
  const char* kernel;
  void (*run)(const KernelTable& tested, const KernelTable& reference, Random& random);
};

std::span<const KernelTest> float_kernel_tests();
std::span<const KernelTest> integer_kernel_tests();
std::span<const KernelTest> winograd8_kernel_tests();
std::span<const KernelTest> table_kernel_tests();
std::span<const KernelTest> matrix_kernel_tests();

}  // namespace pyquant
