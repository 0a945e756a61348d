// What the two paths of a convolution or linear layer share: its sizes, its inputs as panels, its epilogue.
#pragma once

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

// How a convolution's work is cut into units that threads take: groups x blocks of pixel tiles x ranges of outputs.
struct Tiling {
  int64_t tile_pixels = 0;  // pixels of a tile, a multiple of lanes
  int64_t num_tiles = 0;
  int64_t tiles_per_block = 1;
  int64_t num_blocks = 0;
  int64_t output_splits = 1;
};

std::unique_ptr<Step> make_decode_step(const Layer& layer, const Convolution& convolution, const PlanContext& context);
std::unique_ptr<Step> make_table_step(const Layer& layer, const Convolution& convolution, const PlanContext& context);

// Estimated time of each path, in vector operations of the slowest thread.
double decode_cost(const Convolution& convolution, int threads);
double table_cost(const Convolution& convolution, int threads);

}  // namespace pyquant
