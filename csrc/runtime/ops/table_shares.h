// How the work of the table paths is shared out: tiles of pixels, and the outputs that are computed for each.
#pragma once

#include <algorithm>
#include <vector>

#include "runtime/ops/convolution.h"

namespace pyquant {

// A tile of pixels, and outputs that are computed for it.
struct TableUnit {
  int64_t pixel;
  int64_t pixels;
  int64_t output;
  int64_t outputs;
};

// Every thread has the same number of `grain`s of pixels. Of the few that are left, it has a range of outputs, for
// which the tables are built again. Single pixels are not worth that: some threads have one more than others, unless
// there are not enough for all. Where the output lies in parts, each thread has one.
struct TableShares {
  TableShares(const Convolution& c, int64_t tile_, int64_t grain, int64_t range, int threads_)
      : threads(threads_),
        pixels(c.geometry.pixels()),
        outputs(c.group_outputs()),
        tile(tile_),
        own_pixels((grain == 1 && pixels >= threads) || c.writes_parts
                       ? ceil_div(pixels, threads)
                       : std::min(ceil_div(pixels, grain) / threads * grain, pixels)),
        left_outputs(std::min(round_up(ceil_div(outputs, threads), range), outputs)) {}

  // The same with all pixels for every thread, and a range of outputs.
  TableShares by_outputs() const {
    TableShares shares = *this;
    shares.own_pixels = 0;
    return shares;
  }

  // In the order of the threads that are to take them.
  std::vector<TableUnit> units() const {
    std::vector<TableUnit> units;
    for (int64_t thread = 0; thread < threads; ++thread) {
      const int64_t end = std::min((thread + 1) * own_pixels, pixels);
      for (int64_t p = thread * own_pixels; p < end; p += tile) {
        units.push_back({.pixel = p, .pixels = std::min(tile, end - p), .output = 0, .outputs = outputs});
      }
      const int64_t output = thread * left_outputs;
      for (int64_t p = pixels - left_pixels(); p < pixels && output < outputs; p += tile) {
        units.push_back({.pixel = p,
                         .pixels = std::min(tile, pixels - p),
                         .output = output,
                         .outputs = std::min(left_outputs, outputs - output)});
      }
    }
    return units;
  }

  // Of a thread, where cost_of(pixels, outputs) is what tiles cost.
  template <typename CostOf>
  double cost(const CostOf& cost_of) const {
    return cost_of(own_pixels, outputs) + cost_of(left_pixels(), left_outputs);
  }

  int64_t left_pixels() const { return std::max<int64_t>(pixels - threads * own_pixels, 0); }

  int64_t threads;
  int64_t pixels;
  int64_t outputs;  // of a group
  int64_t tile;
  int64_t own_pixels;    // of each thread
  int64_t left_outputs;  // of each thread
};

}  // namespace pyquant
