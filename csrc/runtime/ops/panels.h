// The inputs of the direct paths: unfolded into panels, as a whole or by columns, or read where they lie.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned_buffer.h"
#include "runtime/ops/tiling.h"
#include "runtime/patches.h"

namespace pyquant {

// How a kernel reads panels.
struct Reading {
  int64_t rows = 1;        // at once: of each run, up to the next multiple of so many
  int64_t alignment = 1;   // of rows, in lanes; where it is more than 1, reading others takes longer
  bool by_columns = true;  // whether rows of the kernel may have their inputs in the same rows
  int64_t most_left = 0;   // pixels of an image that are left to others, rather than take a vector by themselves
  bool in_pieces = false;  // as SplitFn writes them: kPieces rows for each two, which are never the input as it lies
};

struct Panels {
  // For `outputs` of each group, with the kernels' `tile`; channels hold values of four bytes. To decode a weight for a
  // block of tiles takes as long as `decode_cost` multiply-adds of a vector.
  Panels(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable& kernels, const Tile& tile,
         int64_t outputs, double decode_cost, int threads, const Reading& reading = {});

  // Run multiply(work, scratch) for all outputs. The groups of the work are unit()s.
  template <typename Multiply>
  void run(const RunState& state, const float* input, uint32_t outside, const Multiply& multiply) const {
    run_tiled(
        tiling, state,
        [&](const PanelPart& p, float* panel, float*) {
          patches.pack(input, p.group, p.first, p.count, tiling.pitch, outside, panel, p.part, p.parts);
        },
        multiply, input, patches.rows() * plane);
  }

  // What a group of the tiling is: a group of all images, or of one.
  struct Unit {
    int64_t group;
    int64_t first_pixel;
  };
  Unit unit(int64_t tiling_group) const {
    return {.group = tiling_group % groups, .first_pixel = tiling_group / groups * (tiling.count + left)};
  }

  // Whether the rows of a unit()'s panel, of all its pixels, are the input as it lies in memory.
  bool are_input() const { return patches.are_input() && tiling.count == plane; }

  // Images whose pixels are tiled by themselves; 1 where those of all are tiled together.
  int64_t images_apart() const { return tiling.groups / groups; }

  // If steps from block to block, of `dim` rows each, would mislead a processor's prefetcher: exchange the second and
  // third of each four, of the rows and of `codes` [row tiles, blocks, tile_rows], so that they are no longer equal.
  void vary_steps(int64_t dim, AlignedBuffer<uint16_t>& codes);

  // How far the rows of a panel lie apart.
  int64_t row_pitch() const { return tiling.in_place ? plane : tiling.pitch; }

  int64_t groups;
  int64_t plane;
  int64_t left;  // the last pixels of a unit(), which are not tiled
  Patches patches;
  Tiling tiling;
  std::vector<int32_t> rows;  // where the inputs of each weight of a row begin in a panel

 private:
  Panels(const ConvGeometry& geometry, const WeightOrder& order, const KernelTable& kernels, const Tile& tile,
         int64_t outputs, const SideCosts& costs, int threads, const Reading& reading, bool by_image, bool by_columns);
};

}  // namespace pyquant
