// Built with AVX-512 enabled; reached only through select_kernels().
//
// Register tile 8 x 3: 24 sums, 3 inputs; the broadcast weight is a memory operand or one of the 5 registers left.
#include "kernels/avx512.h"

#include <immintrin.h>

#include "kernels/vector_kernels.h"

namespace pyquant {
namespace {

struct Avx512 {
  using Float = __m512;
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kRows = 8;
  static constexpr int64_t kVectors = 3;

  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_first(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static void store_first(float* p, int64_t count, Float v) { _mm512_mask_storeu_ps(p, first(count), v); }
  static Float broadcast(float value) { return _mm512_set1_ps(value); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
};

}  // namespace

KernelTable improve_with_avx512(KernelTable table) { return VectorKernels<Avx512>::improve(table, "avx512"); }

}  // namespace pyquant
