// Where the rows of a table begin that an output adds up, read four at a time: loads are what limits such sums.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyquant {
namespace {  // each translation unit has its own: see vector_kernels.h

// Call add(place) for each of the places, in order.
template <typename Add>
__attribute__((always_inline)) inline void for_places(const uint16_t* at, int64_t positions, const Add& add) {
  int64_t q = 0;
  for (; q + 4 <= positions; q += 4) {
    uint64_t four;
    std::memcpy(&four, at + q, sizeof four);
    add(four & 0xffff);
    add(four >> 16 & 0xffff);
    add(four >> 32 & 0xffff);
    add(four >> 48);
  }
  for (; q < positions; ++q) add(at[q]);
}

}  // namespace
}  // namespace pyquant
