// The vector type of AVX-512 for floats; included by the translation units that are built with it.
//
// Register tile 8 x 3: 24 sums, 3 inputs; the broadcast weight is a memory operand or one of the 5 registers left.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace pyquant {
namespace {  // each translation unit has its own: see vector_kernels.h

struct Avx512 {
  using Float = __m512;
  using Half = __m256;
  struct Pair {
    Float first, second;
  };
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kRows = 8;
  static constexpr int64_t kVectors = 3;
  static constexpr double kLeastVectors = 1.0;
  static constexpr int64_t kTableVectors = 2;
  static constexpr int64_t kResidentVectors = 2;

  static __mmask16 first(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_first(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
  using Lanes = __mmask16;
  static Lanes lanes(int64_t begin, int64_t end) { return static_cast<Lanes>(first(end) & ~first(begin)); }
  static Float load_lanes(Float others, Lanes lanes, const float* p) { return _mm512_mask_loadu_ps(others, lanes, p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static void store_first(float* p, int64_t count, Float v) { _mm512_mask_storeu_ps(p, first(count), v); }
  static Float broadcast(float value) { return _mm512_set1_ps(value); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static Float max_or_nan(Float a, Float b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
  }
  static float sum(Float v) { return _mm512_reduce_add_ps(v); }
  static Pair split(Float a, Float b) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return {_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)};
  }
  static Pair merge(Float even, Float odd) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return {_mm512_permutex2var_ps(even, first, odd), _mm512_permutex2var_ps(even, second, odd)};
  }

  static Half low_half(Float v) { return _mm512_castps512_ps256(v); }
  static Half load_half(const float* p) { return _mm256_loadu_ps(p); }
  static void store_half(float* p, Half v) { _mm256_storeu_ps(p, v); }
  static Half multiply_add(Half a, Half b, Half c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace pyquant
