// What the paths of a convolution or linear layer share: its sizes, its inputs as panels, its epilogue.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "runtime/patches.h"
#include "runtime/step.h"

namespace pyquant {

struct Convolution {
  Convolution(const Layer& layer, const PlanContext& context);

  int64_t group_outputs() const { return weight->outputs / geometry.groups; }

  // Write outputs [output, output + rows) of pixels [pixel, pixel + count): tile [rows, pitch] scaled, shifted, with
  // the residual added and the activation applied.
  void finish(const float* tile, int64_t pitch, int64_t output, int64_t rows, int64_t pixel, int64_t count,
              const RunState& state) const;

  // Write the weights of outputs [first_output, first_output + rows) of a coded layer as a matrix [rows, pitch].
  void decode(int64_t first_output, int64_t rows, float* weights, int64_t pitch) const;

  const KernelTable* kernels;
  std::shared_ptr<const Weight> weight;
  ConvGeometry geometry;
  Patches patches;
  std::vector<float> scale;  // [O]
  std::vector<float> bias;   // [O]
  Activation activation;
  ValueId input;
  ValueId output;
  ValueId residual;  // -1: none
};

// How the work of the direct and Winograd paths is cut into units that threads take: groups x blocks of tiles x ranges
// of outputs. What a tile is made of, pixels or Winograd's 2x2 pixels, lies in the lanes.
struct Tiling {
  // For `count` such lanes, each with a column of `column_bytes` in the panels of a block.
  Tiling(const Convolution& convolution, int64_t count, int64_t column_bytes, int threads);

  int64_t units() const { return groups * num_blocks * output_splits; }

  // One unit: a group, tiles [first_tile, last_tile) and outputs [first_output, last_output).
  struct Unit {
    int64_t group;
    int64_t first_tile, last_tile;
    int64_t first_output, last_output;
  };
  Unit unit(int64_t index) const;

  // The lanes of a tile.
  int64_t lanes_of(int64_t tile) const { return std::min(tile_lanes, count - tile * tile_lanes); }

  int64_t groups;
  int64_t group_outputs;
  int64_t tile_rows;
  int64_t count;
  int64_t tile_lanes;  // a multiple of half a vector
  int64_t pitch;       // of a panel: tile_lanes rounded up to whole vectors
  int64_t num_tiles;
  int64_t tiles_per_block;
  int64_t num_blocks;
  int64_t output_splits = 1;
};

// Finding a tile row's weight in a codebook, in vector multiply-adds.
constexpr double kFindCost = 0.1;

// A way to compute a convolution.
struct Path {
  const char* kernel;  // its name in `profile`
  // Estimated time in vector multiply-adds of the slowest thread; infinite where the path does not apply.
  double (*cost)(const Convolution& convolution, int threads);
  std::unique_ptr<Step> (*make)(const Layer& layer, const Convolution& convolution, const PlanContext& context);
};

Path direct_path();
Path winograd2_path();
Path winograd4_path();
Path table_path();
Path dot_path();

}  // namespace pyquant
