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

// How the work of the direct and Winograd paths is cut up: first the inputs of tiles are laid out as panels, then
// outputs are computed, tile_rows at a time, from these. What a tile is made of, pixels or Winograd's m x m pixels,
// lies in the lanes.
//
// Where there are lanes enough, each thread takes tiles of its own and keeps their panels. Where there are not, the
// panels of all tiles are shared: threads make them together, and then take ranges of outputs.
struct Tiling {
  // For `count` lanes, each with a column of `column_bytes` in the panels.
  Tiling(const Convolution& convolution, int64_t count, int64_t column_bytes, int threads);

  // Lanes [begin(tile), begin(tile + 1)) are those of a tile: a multiple of half a vector, but for the last.
  int64_t begin(int64_t tile) const { return std::min(half * (tile * halves / num_tiles), count); }
  int64_t lanes_of(int64_t tile) const { return begin(tile + 1) - begin(tile); }

  // The first tile of a block: so many tiles that their panels stay in the cache while all outputs are computed.
  int64_t first_tile(int64_t block) const { return block * num_tiles / num_blocks; }
  int64_t tiles_per_block() const { return ceil_div(num_tiles, num_blocks); }

  // The first output of a range, of `ranges` that all outputs of a group are cut into.
  int64_t first_output(int64_t range) const {
    return std::min(range * round_up(ceil_div(group_outputs, ranges), tile_rows), group_outputs);
  }

  int64_t group_outputs;
  int64_t tile_rows;
  int64_t count;
  int64_t half;  // of a vector, in lanes
  int64_t halves;
  int64_t num_tiles;
  int64_t num_blocks;
  int64_t pitch;  // of a panel: the lanes of the widest tile, in whole vectors
  bool shared = false;
  int64_t ranges = 1;  // of outputs; 1 unless shared
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
