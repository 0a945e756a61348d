#include "codec/packing.h"

#include <algorithm>

namespace pyquant {

void unpack_codes(std::span<const uint8_t> packed, int bits, std::span<uint16_t> codes) {
  if (bits == 8) {
    std::copy_n(packed.begin(), codes.size(), codes.begin());
    return;
  }
  const uint32_t mask = (1u << bits) - 1;
  uint32_t window = 0;  // bits read but not yet used; at most 7 + 16 of them before a refill ends
  int available = 0;
  size_t next = 0;
  for (uint16_t& code : codes) {
    for (; available < bits; available += 8) window |= static_cast<uint32_t>(packed[next++]) << available;
    code = static_cast<uint16_t>(window & mask);
    window >>= bits;
    available -= bits;
  }
}

}  // namespace pyquant
