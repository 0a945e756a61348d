// The vectors of 16 bytes of every x86 instruction set, as vector_quads.h takes them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/kernels.h"

namespace pyquant {
namespace {

// Shuffles of 16 bytes, which every vector repeats: byte i of each of four quads as 32 bits, and four bytes each of the
// four vectors of a quad turned into four quads. The former's other bytes are zero.
inline __m128i byte_of_quads(int i) {
  return _mm_add_epi32(_mm_set1_epi32(static_cast<int>(0x80808000u) + i), _mm_setr_epi32(0, 4, 8, 12));
}
inline __m128i turned_quads() { return _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15); }

struct X86Bytes16 {
  using Bytes = __m128i;
  static Bytes load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static Bytes load_half(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
  static Bytes load_four(const void* p) {
    int four;
    std::memcpy(&four, p, sizeof four);
    return _mm_cvtsi32_si128(four);
  }
  static Bytes add_parts(Bytes a, Bytes b) { return _mm_add_epi16(a, b); }
  static Bytes rounded(Bytes a, Bytes b) {
    const auto shifted = [](Bytes parts) {
      return _mm_srai_epi16(_mm_add_epi16(parts, _mm_set1_epi16(kPart / 2)), kPartBits);
    };
    return _mm_packs_epi16(shifted(a), shifted(b));
  }
  static Bytes low(Bytes a, Bytes b) { return _mm_unpacklo_epi8(a, b); }
  static Bytes high(Bytes a, Bytes b) { return _mm_unpackhi_epi8(a, b); }
  static Bytes low_pairs(Bytes a, Bytes b) { return _mm_unpacklo_epi16(a, b); }
  static Bytes high_pairs(Bytes a, Bytes b) { return _mm_unpackhi_epi16(a, b); }
  static Bytes low_halves(Bytes a, Bytes b) { return _mm_unpacklo_epi64(a, b); }
  static void store(uint32_t* p, Bytes quads) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), quads); }
  static void store_first(uint32_t* p, int64_t count, Bytes quads) { std::memcpy(p, &quads, count * sizeof *p); }
};

}  // namespace
}  // namespace pyquant
