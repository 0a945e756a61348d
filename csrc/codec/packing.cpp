#include "codec/packing.h"

#include <algorithm>

namespace pyquant {

void pack_codes(std::span<const uint16_t> codes, int bits, std::span<uint8_t> packed) {
  if (bits == 8) {
    std::transform(codes.begin(), codes.end(), packed.begin(),
                   [](uint16_t code) { return static_cast<uint8_t>(code); });
    return;
  }
  uint8_t* out = packed.data();
  const auto write = [&](uint64_t window, int bytes) {
    for (int i = 0; i < bytes; ++i) *out++ = static_cast<uint8_t>(window >> (8 * i));
  };
  size_t next = 0;
  if (bits < 8) {
    // Eight codes fill `bits` bytes. All of a window is stored, and the next one begins where this one's codes end.
    for (; next + 8 <= codes.size() && packed.data() + packed.size() - out >= 8; next += 8, out += bits) {
      uint64_t window = 0;
      for (int i = 0; i < 8; ++i) window |= static_cast<uint64_t>(codes[next + i]) << (i * bits);
      for (int i = 0; i < 8; ++i) out[i] = static_cast<uint8_t>(window >> (8 * i));
    }
  }
  uint64_t window = 0;  // bits not yet written; at most 31 + 16 of them
  int waiting = 0;
  for (; next < codes.size(); ++next) {
    window |= static_cast<uint64_t>(codes[next]) << waiting;
    waiting += bits;
    if (waiting < 32) continue;
    write(window, 4);
    window >>= 32;
    waiting -= 32;
  }
  write(window, (waiting + 7) / 8);
}

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
