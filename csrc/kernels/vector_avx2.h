// The vector type of AVX2, for floats and bytes; included by the translation units that are built with it.
//
// Register tile 4 x 3: 12 sums, 3 inputs and 1 broadcast weight fill the 16 registers; 7 loads for 12 multiply-adds.
//
// Of quads it is 4 x 2: 8 sums, 2 inputs, 1 weight, and ones, with which vpmaddwd adds what vpmaddubsw has added in
// pairs: three instructions for a vector of quads. Elsewhere, where weights may be any, vpmaddubsw would saturate:
// bytes are widened to 16 bits, the even and the odd ones apart, and two vpmaddwd and two additions multiply a vector.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/bytes16_x86.h"
#include "kernels/vector_quads.h"

namespace pyquant {
namespace {  // each translation unit has its own: see vector_kernels.h

struct Avx2 {
  using Float = __m256;
  using Half = __m128;
  struct Pair {
    Float first, second;
  };
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kRows = 4;
  static constexpr int64_t kVectors = 3;
  static constexpr double kLeastVectors = 1.75;
  static constexpr int64_t kTableVectors = 4;
  static constexpr int64_t kResidentVectors = 1;

  static __m256i first(int64_t count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
  }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_first(const float* p, int64_t count) { return _mm256_maskload_ps(p, first(count)); }
  using Lanes = __m256i;
  static Lanes lanes(int64_t begin, int64_t end) { return _mm256_andnot_si256(first(begin), first(end)); }
  static Float load_lanes(Float others, Lanes lanes, const float* p) {
    return _mm256_blendv_ps(others, _mm256_maskload_ps(p, lanes), _mm256_castsi256_ps(lanes));
  }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static void store_first(float* p, int64_t count, Float v) { _mm256_maskstore_ps(p, first(count), v); }
  static Float broadcast(float value) { return _mm256_set1_ps(value); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static Float max_or_nan(Float a, Float b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  }
  static float sum(Float v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  static Float swap_middle_quarters(Float v) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), _MM_SHUFFLE(3, 1, 2, 0)));
  }
  static Pair split(Float a, Float b) {
    return {swap_middle_quarters(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(2, 0, 2, 0))),
            swap_middle_quarters(_mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 1, 3, 1)))};
  }
  static Pair merge(Float even, Float odd) {
    const Float low = _mm256_unpacklo_ps(even, odd);
    const Float high = _mm256_unpackhi_ps(even, odd);
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
  }

  static Half low_half(Float v) { return _mm256_castps256_ps128(v); }
  static Half load_half(const float* p) { return _mm_loadu_ps(p); }
  static void store_half(float* p, Half v) { _mm_storeu_ps(p, v); }
  static Half multiply_add(Half a, Half b, Half c) { return _mm_fmadd_ps(a, b, c); }

  using Decoder = VectorQuads<X86Bytes16>;
  using Int = __m256i;
  using HalfInt = __m128i;
  struct Inputs {  // bytes 0 and 2 of each quad as 16 bits, and bytes 1 and 3
    Int even, odd;
  };
  struct HalfInputs {
    HalfInt even, odd;
  };
  using Weights = Inputs;
  struct PairInt {
    Int first, second;
  };
  static constexpr bool kAddsInPairs = true;
  static constexpr bool kDotsRows = false;
  static constexpr int64_t kRows8 = 4;
  static constexpr int64_t kVectors8 = 2;
  static constexpr double kLeastVectors8 = 1.0;
  static constexpr double kDotCost = 2.0;
  static constexpr int64_t kTable8Vectors = 4;

  static Int load_int(const void* p) { return _mm256_loadu_si256(static_cast<const Int*>(p)); }
  static Int load_int_first(const void* p, int64_t count) {
    return _mm256_maskload_epi32(static_cast<const int*>(p), first(count));
  }
  static void store_int(void* p, Int v) { _mm256_storeu_si256(static_cast<Int*>(p), v); }
  static void store_int_first(void* p, int64_t count, Int v) {
    _mm256_maskstore_epi32(static_cast<int*>(p), first(count), v);
  }
  static Int broadcast_int(uint32_t value) { return _mm256_set1_epi32(static_cast<int>(value)); }
  static Inputs inputs(Int quads) {
    const Int bytes = _mm256_set1_epi16(0xff);
    return {_mm256_and_si256(quads, bytes), _mm256_srli_epi16(quads, 8)};
  }
  static HalfInputs inputs(HalfInt quads) {
    const HalfInt bytes = _mm_set1_epi16(0xff);
    return {_mm_and_si128(quads, bytes), _mm_srli_epi16(quads, 8)};
  }
  static Weights weights(Int quads) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8), _mm256_srai_epi16(quads, 8)};
  }
  static Int dot(Weights weights, Inputs inputs, Int sums) {
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(weights.even, inputs.even));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(weights.odd, inputs.odd));
  }
  static HalfInt dot(Weights weights, HalfInputs inputs, HalfInt sums) {
    sums = _mm_add_epi32(sums, _mm_madd_epi16(low_half_int(weights.even), inputs.even));
    return _mm_add_epi32(sums, _mm_madd_epi16(low_half_int(weights.odd), inputs.odd));
  }
  static Int dot_in_pairs(Int weights, Int inputs, Int sums) {
    const Int pairs = _mm256_maddubs_epi16(inputs, weights);
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static HalfInt dot_in_pairs(Int weights, HalfInt inputs, HalfInt sums) {
    const HalfInt pairs = _mm_maddubs_epi16(inputs, low_half_int(weights));
    return _mm_add_epi32(sums, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
  }
  static Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int bit_or(Int a, Int b) { return _mm256_or_si256(a, b); }
  static Int bit_xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
  template <int count>
  static Int shift_left(Int v) {
    return _mm256_slli_epi32(v, count);
  }
  template <int count>
  static Int shift_right(Int v) {
    return _mm256_srli_epi32(v, count);
  }
  static Int shift_right_signed(Int v, int count) { return _mm256_sra_epi32(v, _mm_cvtsi32_si128(count)); }
  static Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int add_short(Int a, Int b) { return _mm256_add_epi16(a, b); }
  static Int subtract_short(Int a, Int b) { return _mm256_sub_epi16(a, b); }
  static Int min_short(Int a, Int b) { return _mm256_min_epi16(a, b); }
  static Int max_short(Int a, Int b) { return _mm256_max_epi16(a, b); }
  static Int magnitude_short(Int v) { return _mm256_abs_epi16(v); }
  static Int scale_short(Int a, Int b) { return _mm256_mulhrs_epi16(a, b); }
  static Int max_bytes(Int a, Int b) { return _mm256_max_epu8(a, b); }
  static Int min_bytes(Int a, Int b) { return _mm256_min_epu8(a, b); }
  static Int broadcast_byte(uint8_t value) { return _mm256_set1_epi8(static_cast<char>(value)); }
  static Int byte_of(Int quads, int i) {
    return _mm256_shuffle_epi8(quads, _mm256_broadcastsi128_si256(byte_of_quads(i)));
  }
  // Each half of a register holds four bytes of each vector; then one of each vector side by side.
  static Int to_quads(Int a, Int b, Int c, Int d) {
    const Int bytes = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(turned_quads()));
  }
  static Int pack(Int a, Int b) { return _mm256_packs_epi32(a, b); }
  static PairInt unpack(Int v) {
    return {_mm256_srai_epi32(_mm256_unpacklo_epi16(v, v), 16), _mm256_srai_epi32(_mm256_unpackhi_epi16(v, v), 16)};
  }
  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  static Int to_int(Float v) { return _mm256_cvtps_epi32(v); }
  static PairInt split_int(Int a, Int b) {
    const Pair pair = split(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b));
    return {_mm256_castps_si256(pair.first), _mm256_castps_si256(pair.second)};
  }
  static Int load_int_lanes(Int others, Lanes lanes, const void* p) {
    return _mm256_blendv_epi8(others, _mm256_maskload_epi32(static_cast<const int*>(p), lanes), lanes);
  }
  static PairInt widen(Int v) {
    const Int zeros = _mm256_setzero_si256();
    return {_mm256_unpacklo_epi8(v, zeros), _mm256_unpackhi_epi8(v, zeros)};
  }
  static Int narrow(Int a, Int b) { return _mm256_packs_epi16(a, b); }
  static PairInt twins(Int v) { return {_mm256_unpacklo_epi32(v, v), _mm256_unpackhi_epi32(v, v)}; }
  static PairInt split_twins(Int a, Int b) {
    const Float first = _mm256_castsi256_ps(a), second = _mm256_castsi256_ps(b);
    return {_mm256_castps_si256(_mm256_shuffle_ps(first, second, _MM_SHUFFLE(2, 0, 2, 0))),
            _mm256_castps_si256(_mm256_shuffle_ps(first, second, _MM_SHUFFLE(3, 1, 3, 1)))};
  }
  static Int add_pairs(Int v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
  static HalfInt low_half_int(Int v) { return _mm256_castsi256_si128(v); }
  static HalfInt load_half_int(const void* p) { return _mm_loadu_si128(static_cast<const HalfInt*>(p)); }
  static void store_half_int(void* p, HalfInt v) { _mm_storeu_si128(static_cast<HalfInt*>(p), v); }
};

}  // namespace
}  // namespace pyquant
