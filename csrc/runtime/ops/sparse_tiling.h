// How the work of the sparse paths is cut up: a tile of pixels, and outputs, some at a time.
#pragma once

#include <algorithm>

#include "runtime/ops/convolution.h"
#include "runtime/sparse_rows.h"

namespace pyquant {

struct SparseTiling {
  // Where there are few tiles, threads take ranges of outputs, and unfold the inputs of a tile each for itself.
  SparseTiling(const Convolution& c, int threads)
      : groups(c.geometry.groups),
        pixels(c.geometry.pixels()),
        outputs(c.group_outputs()),
        tiles(ceil_div(pixels, kSparsePixels)) {
    const int64_t units = groups * tiles;
    const bool suffices = units >= kUnitsPerThread * threads || units % threads == 0;
    range = suffices ? outputs : std::min(round_up(ceil_div(outputs, threads), kQuad), outputs);
    units_of_tile = ceil_div(outputs, range);
  }

  // For each tile call unfold(group, pixel, pixels, panel), then add(output, outputs, pixel, pixels, panel, sums) for
  // some outputs after others; those of all groups are counted. Workers' scratch memory holds sums, a panel, and what
  // follows.
  template <typename Unfold, typename Add>
  void run(const RunState& state, const Unfold& unfold, const Add& add) const {
    state.pool->parallel_for(groups * tiles * units_of_tile, [&](int64_t unit, int worker) {
      const int64_t part = unit % units_of_tile, tile = unit / units_of_tile % tiles;
      const int64_t group = unit / units_of_tile / tiles;
      const int64_t pixel = tile * kSparsePixels;
      const int64_t count = std::min(kSparsePixels, pixels - pixel);
      float* const sums = state.scratch[worker];
      float* const panel = sums + kSumsFloats;
      unfold(group, pixel, count, panel);
      const int64_t end = std::min((part + 1) * range, outputs);
      for (int64_t output = part * range; output < end; output += kOutputs) {
        add(group * outputs + output, std::min(kOutputs, end - output), pixel, count, panel, sums);
      }
    });
  }

  // Vector multiply-adds of the slowest thread, for so many weights, or quads, that are not zero, and panels of
  // `depth`.
  double cost(int64_t nonzero, int64_t depth, int64_t lanes, int threads) const {
    const auto passes = static_cast<double>(ceil_div(depth, kPassRows) * outputs);
    const double vector = kSparseWeightCost * static_cast<double>(nonzero / groups) + kSparsePassCost * passes +
                          kUnfoldCost * static_cast<double>(depth * units_of_tile);
    const int64_t units = groups * tiles * units_of_tile;
    const double slowest = static_cast<double>(ceil_div(units, threads)) / static_cast<double>(units);
    return slowest * static_cast<double>(groups * ceil_div(pixels, lanes)) * vector;
  }

  static constexpr double kUnfoldCost = 12.0;    // of a vector of a row of a panel, in multiply-adds of the direct path
  static constexpr int64_t kUnitsPerThread = 4;  // so many of equal size are even enough
  static constexpr int64_t kOutputs = 256;       // whose sums are held together: 64 KiB
  static constexpr int64_t kSumsFloats = kOutputs * kSparsePixels;

  int64_t groups;
  int64_t pixels;
  int64_t outputs;  // of a group
  int64_t tiles;
  int64_t range;  // outputs of a unit
  int64_t units_of_tile;
};

}  // namespace pyquant
