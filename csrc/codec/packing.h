// Codes of a fixed number of bits, packed without gaps, least significant bit first.
#pragma once

#include <cstdint>
#include <span>

#include "base/sizes.h"

namespace pyquant {

constexpr int kMaxCodeBits = 16;

// Bytes that `count` packed codes of `bits` bits take.
inline int64_t packed_bytes(int64_t count, int bits) { return ceil_div(checked_multiply(count, bits), 8); }

// Pack codes, each below 2^bits (1 to 16), into packed_bytes() bytes; spare bits of the last one are zero.
void pack_codes(std::span<const uint16_t> codes, int bits, std::span<uint8_t> packed);

// Unpack codes.size() codes of `bits` (1 to 16) bits from `packed`, which holds at least packed_bytes() bytes.
void unpack_codes(std::span<const uint8_t> packed, int bits, std::span<uint16_t> codes);

}  // namespace pyquant
