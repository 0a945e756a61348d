// Runs of Winograd's tiles, as pictures may have them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "check.h"
#include "kernels/winograd_kernels.h"

namespace pyquant {

// `tiles` of m x m outputs in runs of up to `most`, whose rows lie `row_pitch` apart; some rows are outside, and some
// columns left or right of the picture. What lies there must not be read: what is inside begins and ends in() it.
struct WinogradRuns {
  WinogradRuns(int64_t tiles, int64_t most, int64_t m, Random& random) : row_pitch(m * tiles + 2) {
    for (int64_t tile = 0; tile < tiles;) {
      const int64_t size = std::min(1 + random.below(most), tiles - tile);
      const int64_t first_row = static_cast<int64_t>(runs.size()) * (m + 2);
      WinogradRun run{.tile = tile, .size = size, .from = {}, .begin = random.below(2), .end = 0};
      run.end = m * size + 2 - random.below(3);
      for (int64_t y = 0; y < m + 2; ++y) {
        run.from[y] = random.below(4) == 0 ? WinogradRun::kOutside : (first_row + y) * row_pitch - run.begin;
      }
      runs.push_back(run);
      tile += size;
    }
    plane = std::max<int64_t>(1, static_cast<int64_t>(runs.size()) * (m + 2) * row_pitch);
  }

  int64_t count() const { return static_cast<int64_t>(runs.size()); }

  int64_t row_pitch;
  int64_t plane;  // of a channel
  std::vector<WinogradRun> runs;
};

}  // namespace pyquant
