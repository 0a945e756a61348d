// Built with AVX2 and AVX-VNNI enabled; reached only through select_kernels().
//
// vpdpbusd adds the four products of a quad in one instruction, exactly. Register tile as for floats.
#include "kernels/avxvnni.h"

#include <cpuid.h>

#include "kernels/vector_avx2.h"
#include "kernels/vector_bytes.h"

namespace pyquant {
namespace {

struct AvxVnni : Avx2 {
  using Inputs = Int;
  using HalfInputs = HalfInt;
  using Weights = Int;
  static constexpr bool kAddsInPairs = false;
  static constexpr bool kDotsRows = true;
  static constexpr int64_t kVectors8 = 3;
  static constexpr double kLeastVectors8 = 1.75;
  static constexpr double kDotCost = 1.0;

  static Int inputs(Int quads) { return quads; }
  static HalfInt inputs(HalfInt quads) { return quads; }
  static Weights weights(Int quads) { return quads; }
  static Int dot(Weights weights, Inputs inputs, Int sums) { return _mm256_dpbusd_avx_epi32(sums, inputs, weights); }
  static HalfInt dot(Weights weights, HalfInputs inputs, HalfInt sums) {
    return _mm_dpbusd_avx_epi32(sums, inputs, low_half_int(weights));
  }
};

}  // namespace

bool runs_avxvnni() {
  // Asked for here: not every compiler's checks know it. That registers are saved, those for AVX2 include.
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & kAvxVnni) != 0;
}

KernelTable improve_with_avxvnni(KernelTable table) { return ByteKernels<AvxVnni>::improve(table, "avxvnni"); }

}  // namespace pyquant
