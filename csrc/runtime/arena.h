// Placing values in one block of memory so that values which live at different times share it.
#pragma once

#include <cstdint>
#include <vector>

namespace pyquant {

struct Lifetime {
  int64_t floats = 0;  // 0: needs no place
  int64_t first = 0;   // the step that writes it
  int64_t last = 0;    // the last step that reads it
};

struct Placement {
  std::vector<int64_t> offsets;  // in floats, each a multiple of a cache line; -1 for values without a place
  int64_t total = 0;             // floats of the block
};

// Largest first, each at the lowest offset that is free while it lives; `slack` floats are kept behind each value.
Placement place(const std::vector<Lifetime>& lifetimes, int64_t slack);

}  // namespace pyquant
