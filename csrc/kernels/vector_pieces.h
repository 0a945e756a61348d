// Where the inputs of a vector of Winograd's tiles lie, which is the same for all channels.
//
// V provides `lanes` and, of floats or integers, what loads these: see vector_kernels.h and vector_bytes.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/winograd_kernels.h"

namespace pyquant {

// For tiles of m x m outputs. Of each row of their inputs there are 2 * m vectors: first m, of the first m columns of
// all tiles side by side; then those that lie m columns further right.
template <typename V, int64_t m>
class WinogradPieces {
 public:
  static constexpr int64_t kSide = m + 2;

  // Of the kLanes tiles from `tile` on.
  WinogradPieces(const WinogradRun* runs, int64_t num_runs, int64_t tile) noexcept {
    int64_t num = 0;
    for (int64_t i = 0; i < kSide * kVectors; ++i) {
      const int64_t y = i / kVectors, right = i % kVectors / m * m, lane = i % m * V::kLanes;
      begin_[i] = num;
      for (const WinogradRun* run = runs; run < runs + num_runs; ++run) {
        const int64_t at = m * (run->tile - tile), column = at - right;  // the lane that column 0 would have
        const int64_t first = std::max({at, column + run->begin, lane}) - lane;
        const int64_t last = std::min({at + m * run->size, column + run->end, lane + V::kLanes}) - lane;
        if (first >= last || run->from[y] == WinogradRun::kOutside) continue;
        pieces_[num++] = {V::lanes(first, last), run->from[y] + lane - column};
      }
    }
    begin_[kSide * kVectors] = num;
  }

  // Vector v of row y of a channel that begins at `in`; lanes outside of the picture are as in `outside`.
  template <typename Vector, typename Value, typename Load>
  Vector load(const Value* in, int64_t y, int64_t v, Vector outside, const Load& load_lanes) const noexcept {
    for (int64_t i = begin_[y * kVectors + v]; i < begin_[y * kVectors + v + 1]; ++i) {
      outside = load_lanes(outside, pieces_[i].lanes, in + pieces_[i].from);
    }
    return outside;
  }

 private:
  static constexpr int64_t kVectors = 2 * m;

  // Lanes of one run in one vector, and where lane 0 would lie.
  struct Piece {
    typename V::Lanes lanes;
    int64_t from;
  };

  Piece pieces_[kSide * kVectors * V::kLanes];
  int64_t begin_[kSide * kVectors + 1];  // the first piece of each vector of each row
};

}  // namespace pyquant
