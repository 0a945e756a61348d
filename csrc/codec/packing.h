// Codes of a fixed number of bits, packed without gaps, least significant bit first.
#pragma once

#include <cstdint>
#include <span>

namespace pyquant {

constexpr int kMaxCodeBits = 16;

// Unpack codes.size() codes of `bits` (1 to 16) bits from `packed`, which holds at least ceil(codes.size() * bits / 8)
// bytes.
void unpack_codes(std::span<const uint8_t> packed, int bits, std::span<uint16_t> codes);

}  // namespace pyquant
