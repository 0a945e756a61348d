// Each kernel of an instruction set against the reference, at awkward sizes, in memory that notices who leaves it.
//
//   kernels_test          tests every instruction set that runs here
//   kernels_test ISA...   tests those named
//
// The exit code is 0 where all passed, 1 where some did not, 2 where an instruction set cannot run.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <span>
#include <string>
#include <vector>

#include "check.h"
#include "kernel_tests.h"
#include "kernels/reference.h"
#include "kernels/select.h"

namespace pyquant {
namespace {

const std::span<const KernelTest> kTests[] = {float_kernel_tests(), integer_kernel_tests(), winograd8_kernel_tests(),
                                              table_kernel_tests(), matrix_kernel_tests()};

char current_kernel[128] = "";

bool test_kernel(const KernelTest& test, const KernelTable& tested) {
  std::snprintf(current_kernel, sizeof(current_kernel), "%s %s", tested.isa, test.kernel);
  num_cases = 0;
  Random random;
  bool passed = true;
  try {
    test.run(tested, reference_kernels(), random);
    std::printf("%s: %lld cases\n", current_kernel, static_cast<long long>(num_cases));
  } catch (const Failure& failure) {
    passed = false;
    std::printf("%s:%s: %s\n", current_kernel, current_case, failure.what());
  }
  std::fflush(stdout);
  return passed;
}

// Return whether all kernels of an instruction set passed; one that fails does not stop the others.
bool test_isa(const std::string& isa) {
  const KernelTable tested = select_kernels(isa);
  if (isa != tested.isa) {
    std::printf("isa: expected %s, got %s\n", isa.c_str(), tested.isa);
    return false;
  }
  bool passed = true;
  for (const std::span<const KernelTest> tests : kTests) {
    for (const KernelTest& test : tests) passed = test_kernel(test, tested) && passed;
  }
  return passed;
}

void report_forbidden_access(int) {
  const auto put = [](const char* text) { return write(STDOUT_FILENO, text, std::strlen(text)) >= 0; };
  const bool written = put(current_kernel) && put(":") && put(current_case) &&
                       put(": expected no access beyond arrays and their slack, got one\n");
  _exit(written ? 1 : 2);
}

}  // namespace
}  // namespace pyquant

int main(int argc, char** argv) {
  std::signal(SIGSEGV, &pyquant::report_forbidden_access);
  std::signal(SIGBUS, &pyquant::report_forbidden_access);
  std::vector<std::string> isas(argv + 1, argv + argc);
  if (isas.empty()) isas = pyquant::available_isas();
  try {
    bool passed = true;
    for (const std::string& isa : isas) passed = pyquant::test_isa(isa) && passed;
    return passed ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 2;
  }
}
