// Built with AVX-512 and VNNI enabled; reached only through select_kernels().
//
// vpdpbusd adds the four products of a quad in one instruction, exactly. Register tile as for floats.
#include "kernels/avx512vnni.h"

#include "kernels/bytes16_x86.h"
#include "kernels/vector_avx512.h"
#include "kernels/vector_bytes.h"

namespace pyquant {
namespace {

// Four vectors of 16 bytes in one register, and of parts in two: of the first two channels, and of the others.
struct Avx512Lanes {
  using Lanes = __m512i;
  struct Parts {
    __m512i first, last;
  };

  static __m256i load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static __m512i halves(const void* p, const void* q) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_half(p)), load_half(q), 1);
  }

  template <int64_t n>
  static Lanes load(const int8_t* const (&places)[n]) {
    if constexpr (n == 1) {
      return _mm512_loadu_si512(places[0]);
    } else if constexpr (n == 2) {
      return halves(places[0], places[1]);
    } else {
      Lanes lanes = _mm512_castsi128_si512(X86Bytes16::load(places[0]));
      lanes = _mm512_inserti32x4(lanes, X86Bytes16::load(places[1]), 1);
      lanes = _mm512_inserti32x4(lanes, X86Bytes16::load(places[2]), 2);
      return _mm512_inserti32x4(lanes, X86Bytes16::load(places[3]), 3);
    }
  }
  template <int64_t n>
  static Parts load(const int16_t* const (&places)[n]) {
    if constexpr (n == 1) {
      return {_mm512_loadu_si512(places[0]), _mm512_loadu_si512(places[0] + 2 * kTapsOfVector)};
    } else if constexpr (n == 2) {
      return {_mm512_loadu_si512(places[0]), _mm512_loadu_si512(places[1])};
    } else {
      return {halves(places[0], places[1]), halves(places[2], places[3])};
    }
  }
  static Parts add(Parts a, Parts b) { return {_mm512_add_epi16(a.first, b.first), _mm512_add_epi16(a.last, b.last)}; }

  // Fours of taps change places with channels, from where they lie; then so do the taps in a four.
  static Lanes turned(__m512i fours, __m512i from) {
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi32(from, fours), _mm512_broadcast_i32x4(turned_quads()));
  }
  static Lanes interleave(Lanes channels) {
    return turned(channels, _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  }
  // Bytes of half a channel of each register come to lie side by side.
  static Lanes interleave(Parts parts) {
    const auto shifted = [](__m512i sum) {
      return _mm512_srai_epi16(_mm512_add_epi16(sum, _mm512_set1_epi16(kPart / 2)), kPartBits);
    };
    const __m512i bytes = _mm512_packs_epi16(shifted(parts.first), shifted(parts.last));
    return turned(bytes, _mm512_setr_epi32(0, 8, 2, 10, 1, 9, 3, 11, 4, 12, 6, 14, 5, 13, 7, 15));
  }
  static __m128i lane(Lanes lanes, int64_t k) {
    switch (k) {
      case 0:
        return _mm512_castsi512_si128(lanes);
      case 1:
        return _mm512_extracti32x4_epi32(lanes, 1);
      case 2:
        return _mm512_extracti32x4_epi32(lanes, 2);
      default:
        return _mm512_extracti32x4_epi32(lanes, 3);
    }
  }
  static void store(uint32_t* p, Lanes lanes, int64_t) { _mm512_storeu_si512(p, lanes); }
};

struct Avx512Vnni : Avx512 {
  using Decoder = VectorQuads<X86Bytes16, Avx512Lanes>;
  using Int = __m512i;
  using HalfInt = __m256i;
  using Inputs = Int;
  using HalfInputs = HalfInt;
  using Weights = Int;
  struct PairInt {
    Int first, second;
  };
  static constexpr bool kAddsInPairs = false;
  static constexpr bool kDotsRows = true;
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
  static Int bit_xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
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
  static Int subtract_short(Int a, Int b) { return _mm512_sub_epi16(a, b); }
  static Int min_short(Int a, Int b) { return _mm512_min_epi16(a, b); }
  static Int max_short(Int a, Int b) { return _mm512_max_epi16(a, b); }
  static Int magnitude_short(Int v) { return _mm512_abs_epi16(v); }
  static Int scale_short(Int a, Int b) { return _mm512_mulhrs_epi16(a, b); }
  static Int max_bytes(Int a, Int b) { return _mm512_max_epu8(a, b); }
  static Int min_bytes(Int a, Int b) { return _mm512_min_epu8(a, b); }
  static Int broadcast_byte(uint8_t value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  static Int byte_of(Int quads, int i) { return _mm512_shuffle_epi8(quads, _mm512_broadcast_i32x4(byte_of_quads(i))); }
  // Each quarter of a register holds four bytes of each vector; then one of each vector side by side.
  static Int to_quads(Int a, Int b, Int c, Int d) {
    const Int bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(turned_quads()));
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
  static Int load_int_lanes(Int others, Lanes lanes, const void* p) {
    return _mm512_mask_loadu_epi32(others, lanes, p);
  }
  static PairInt widen(Int v) {
    const Int zeros = _mm512_setzero_si512();
    return {_mm512_unpacklo_epi8(v, zeros), _mm512_unpackhi_epi8(v, zeros)};
  }
  static Int narrow(Int a, Int b) { return _mm512_packs_epi16(a, b); }
  static PairInt twins(Int v) { return {_mm512_unpacklo_epi32(v, v), _mm512_unpackhi_epi32(v, v)}; }
  static PairInt split_twins(Int a, Int b) {
    const Float first = _mm512_castsi512_ps(a), second = _mm512_castsi512_ps(b);
    return {_mm512_castps_si512(_mm512_shuffle_ps(first, second, _MM_SHUFFLE(2, 0, 2, 0))),
            _mm512_castps_si512(_mm512_shuffle_ps(first, second, _MM_SHUFFLE(3, 1, 3, 1)))};
  }
  static Int add_pairs(Int v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }
  static HalfInt low_half_int(Int v) { return _mm512_castsi512_si256(v); }
  static HalfInt load_half_int(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void store_half_int(void* p, HalfInt v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
};

}  // namespace

KernelTable improve_with_avx512vnni(KernelTable table) { return ByteKernels<Avx512Vnni>::improve(table, "avx512vnni"); }

}  // namespace pyquant
