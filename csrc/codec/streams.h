// Packed codes as streams, one for each codebook, in which frequent codes take fewer bits.
//
// A stream begins with a byte that says how its codes are stored:
//   0  packed, as they were.
//   1  entropy-coded: a table (frequencies.h), then states and words (rans.h):
//        2 bytes  the first symbol of the table      2 bytes  the last one
//        1 byte   mantissa bits + 16 * level bits    1 byte   the lowest weight's number
//        the levels of the symbols from the first to the last, packed (packing.h)
//        4 states of 4 bytes, and the words
// A symbol is one code of 5 or more bits, or as many shorter ones as 8 bits hold, the first in the lowest bits: a byte
// of two 4-bit codes is decoded as quickly as one 8-bit code, and what one says of the other is made use of. The last
// symbol of a stream is filled with zeros. A stream without codes is the byte 0.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pyquant {

// Return `models` streams, each the smaller way to store its codes: `count` of `bits` (1 to 16) bits, in their order in
// `packed`, which holds packed_bytes(models * count, bits) bytes.
std::vector<uint8_t> encode_codes(std::span<const uint8_t> packed, int bits, int64_t models, int64_t count);

// The inverse: `coded` must hold these streams and no byte more. Throws Error, saying which stream is damaged and how.
void decode_codes(std::span<const uint8_t> coded, int bits, int64_t models, int64_t count, std::span<uint8_t> packed);

}  // namespace pyquant
