// The entropy coder: rANS (Duda, arXiv:1311.2540) with static frequencies, four states in turn, 16 bits at a time.
//
// Why rANS: decoding is a load, a multiplication and a conditional load for each symbol, without a division or a branch
// that depends on data, and turns of four independent states keep a processor busy while each waits for its own loads.
//
// A state x lies in 2^16 .. 2^32 - 1. With P = 2^precision, a symbol s of frequency F and start C (the sum of the
// frequencies before it) is coded by, and found again from the low bits of x by,
//   encode  where x >= F * 2^(32 - precision): write the low 16 bits of x, and x >>= 16
//           x <- (x / F) * P + C + x mod F
//   decode  s: the one with C <= x mod P < C + F;  x <- F * (x / P) + x mod P - C
//           where x < 2^16: x <- x * 2^16 + the next 16 bits
// Symbol i is coded by state i mod 4. The encoder takes the symbols from the last to the first, every state beginning
// at 2^16, and the decoder from the first to the last; it must end at 2^16 in all states, which damage hardly ever
// does.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pyquant {

// Append the states (four times 4 bytes) and words (2 bytes each, in the order in which they are read) of `symbols` to
// `out`; numbers are little-endian. starts[s - first] and the one behind it bound the frequency of symbol s, which must
// not be 0.
void rans_encode(std::span<const uint16_t> symbols, int32_t first, std::span<const uint32_t> starts, int precision,
                 std::vector<uint8_t>& out);

// Decode symbols.size() symbols from the beginning of `coded`, and return how many bytes they took. Throws Error where
// `coded` ends too early, or the states do not end as they must.
int64_t rans_decode(std::span<const uint8_t> coded, int32_t first, std::span<const uint32_t> starts, int precision,
                    std::span<uint16_t> symbols);

}  // namespace pyquant
