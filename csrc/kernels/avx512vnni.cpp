// Built with AVX-512 and VNNI enabled; reached only through select_kernels().
//
// vpdpbusd adds the four products of a quad in one instruction, exactly. Register tile as for floats.
#include "kernels/avx512vnni.h"

#include "kernels/vector_avx512.h"
#include "kernels/vector_bytes.h"

namespace pyquant {
namespace {

struct Avx512Vnni : Avx512 {
  using Int = __m512i;
  using HalfInt = __m256i;
  using Inputs = Int;
  using HalfInputs = HalfInt;
  using Weights = Int;
  struct PairInt {
    Int first, second;
  };
  static constexpr int64_t kRows8 = 8;
  static constexpr int64_t kVectors8 = 3;
  static constexpr double kLeastVectors8 = 1.0;
  static constexpr double kDotCost = 1.0;
  static constexpr int64_t kTable8Vectors = 2;

  static Int load_int(const void* p) { return _mm512_loadu_si512(p); }
  static Int load_int_first(const void* p, int64_t count) { return _mm512_maskz_loadu_epi32(first(count), p); }
  static void store_int(void* p, Int v) { _mm512_storeu_si512(p, v); }
  static void store_int_first(void* p, int64_t count, Int v) { _mm512_mask_storeu_epi32(p, first(count), v); }
  static Int broadcast_int(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
  static Int inputs(Int quads) { return quads; }
  static HalfInt inputs(HalfInt quads) { return quads; }
  static Weights weights(Int quads) { return quads; }
  static Int dot(Weights weights, Inputs inputs, Int sums) { return _mm512_dpbusd_epi32(sums, inputs, weights); }
  static HalfInt dot(Weights weights, HalfInputs inputs, HalfInt sums) {
    return _mm256_dpbusd_epi32(sums, inputs, _mm512_castsi512_si256(weights));
  }
  static Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
  template <int count>
  static Int shift_left(Int v) {
    return _mm512_slli_epi32(v, count);
  }
  template <int count>
  static Int shift_right(Int v) {
    return _mm512_srli_epi32(v, count);
  }
  static Int shift_right_signed(Int v, int count) { return _mm512_sra_epi32(v, _mm_cvtsi32_si128(count)); }
  static Int add_int(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int add_short(Int a, Int b) { return _mm512_add_epi16(a, b); }
  static Int max_bytes(Int a, Int b) { return _mm512_max_epu8(a, b); }
  static Int min_bytes(Int a, Int b) { return _mm512_min_epu8(a, b); }
  static Int broadcast_byte(uint8_t value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  static Int byte_of(Int quads, int i) {
    // Byte i of each quad; what is negative becomes zero.
    const __m128i from =
        _mm_add_epi32(_mm_setr_epi32(-0x7f7f8000, -0x7f7f7ffc, -0x7f7f7ff8, -0x7f7f7ff4), _mm_set1_epi32(i));
    return _mm512_shuffle_epi8(quads, _mm512_broadcast_i32x4(from));
  }
  // Each quarter of a register holds four bytes of each vector; then one of each vector side by side.
  static Int to_quads(Int a, Int b, Int c, Int d) {
    const Int order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const Int bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_shuffle_epi8(bytes, order);
  }
  static Int pack(Int a, Int b) { return _mm512_packs_epi32(a, b); }
  static PairInt unpack(Int v) {
    return {_mm512_srai_epi32(_mm512_unpacklo_epi16(v, v), 16), _mm512_srai_epi32(_mm512_unpackhi_epi16(v, v), 16)};
  }
  static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
  static Int to_int(Float v) { return _mm512_cvtps_epi32(v); }
  static PairInt split_int(Int a, Int b) {
    const Pair pair = split(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
    return {_mm512_castps_si512(pair.first), _mm512_castps_si512(pair.second)};
  }
  static HalfInt low_half_int(Int v) { return _mm512_castsi512_si256(v); }
  static HalfInt load_half_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store_half_int(void* p, HalfInt v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
};

}  // namespace

KernelTable improve_with_avx512vnni(KernelTable table) { return ByteKernels<Avx512Vnni>::improve(table, "avx512vnni"); }

}  // namespace pyquant
