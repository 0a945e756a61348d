// How unsigned bytes stand for numbers: scale * (q - zero), so that 0 is one of them.
#pragma once

#include <cstdint>

namespace pyquant {

struct Quantization {
  float scale = 1;
  int32_t zero = 0;

  // A quad of zeros.
  uint32_t zeros() const { return static_cast<uint32_t>(zero) * 0x01010101u; }
};

// The bytes that reach from `low` to `high`, and to 0 where that lies outside.
Quantization quantization_of(float low, float high);

}  // namespace pyquant
