// The decode path: the weights of a few outputs at a time are decoded and multiplied with panels of unfolded inputs.
#include <algorithm>

#include "runtime/ops/convolution.h"

namespace pyquant {
namespace {

// Panels of one block of pixels: they are read once per tile_rows outputs, so they should stay in the second-level
// cache.
constexpr int64_t kPanelBytes = 512 * 1024;

// From this many tiles per thread on, threads take pixels; below, an uneven last tile would cost more than packing the
// same panel in each thread, so they take outputs.
constexpr int64_t kTilesPerThread = 16;

// Decoding one weight, in vector multiply-adds.
constexpr double kDecodeCost = 0.3;

Tiling tile(const Convolution& c, int threads) {
  Tiling t;
  const int64_t vectors = ceil_div(c.geometry.pixels(), c.kernels->lanes);
  const int64_t most = c.kernels->tile_pixels / c.kernels->lanes;
  // Tiles of equal width: four vectors are done as 2 + 2, not 3 + 1.
  t.tile_pixels = ceil_div(vectors, ceil_div(vectors, most)) * c.kernels->lanes;
  t.num_tiles = ceil_div(c.geometry.pixels(), t.tile_pixels);
  const int64_t panel_bytes = c.patches.depth() * t.tile_pixels * static_cast<int64_t>(sizeof(float));
  t.tiles_per_block = std::clamp<int64_t>(kPanelBytes / panel_bytes, 1, t.num_tiles);
  if (threads > 1) {
    if (t.num_tiles * c.geometry.groups >= kTilesPerThread * threads) {
      t.tiles_per_block = std::min(t.tiles_per_block, ceil_div(t.num_tiles * c.geometry.groups, 4 * threads));
    } else {
      t.output_splits = std::min<int64_t>(threads, ceil_div(c.group_outputs(), c.kernels->tile_rows));
    }
  }
  t.num_blocks = ceil_div(t.num_tiles, t.tiles_per_block);
  return t;
}

class DecodeStep : public Step {
 public:
  DecodeStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, convolution.weight->is_dense() ? "dense" : "decode"),
        c_(convolution),
        t_(tile(convolution, context.threads)) {
    const int64_t depth = c_.patches.depth();
    panel_floats_ = round_up(depth * t_.tile_pixels + Patches::kRunOver, 16);
    weights_floats_ = round_up(c_.kernels->tile_rows * depth + kSlackBytes / 4, 16);
  }

  int64_t scratch_floats() const override {
    return t_.tiles_per_block * panel_floats_ + weights_floats_ + c_.kernels->tile_rows * c_.kernels->tile_pixels;
  }

  void run(const RunState& state) const override {
    const int64_t units = c_.geometry.groups * t_.num_blocks * t_.output_splits;
    state.pool->parallel_for(units, [&](int64_t unit, int worker) {
      run_unit(unit / t_.output_splits / t_.num_blocks, unit / t_.output_splits % t_.num_blocks,
               unit % t_.output_splits, state, state.scratch[worker]);
    });
  }

 private:
  void run_unit(int64_t group, int64_t block, int64_t split, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    const int64_t depth = c_.patches.depth();
    float* const panels = scratch;
    float* const weights = panels + t_.tiles_per_block * panel_floats_;
    float* const sums = weights + weights_floats_;

    const int64_t first_tile = block * t_.tiles_per_block;
    const int64_t last_tile = std::min(first_tile + t_.tiles_per_block, t_.num_tiles);
    const auto pixels_of = [&](int64_t tile) {
      return std::min(t_.tile_pixels, c_.geometry.pixels() - tile * t_.tile_pixels);
    };
    for (int64_t tile = first_tile; tile < last_tile; ++tile) {
      c_.patches.pack(state.values[c_.input], group, tile * t_.tile_pixels, pixels_of(tile), t_.tile_pixels,
                      panels + (tile - first_tile) * panel_floats_);
    }

    const int64_t per_split = round_up(ceil_div(c_.group_outputs(), t_.output_splits), kernels.tile_rows);
    const int64_t first = group * c_.group_outputs() + std::min(split * per_split, c_.group_outputs());
    const int64_t last = group * c_.group_outputs() + std::min((split + 1) * per_split, c_.group_outputs());
    for (int64_t output = first; output < last; output += kernels.tile_rows) {
      const int64_t rows = std::min(kernels.tile_rows, last - output);
      const float* matrix = decode(output, rows, weights);
      for (int64_t tile = first_tile; tile < last_tile; ++tile) {
        kernels.gemm_tile(matrix, depth, panels + (tile - first_tile) * panel_floats_, t_.tile_pixels, sums,
                          kernels.tile_pixels, rows, pixels_of(tile), depth);
        c_.finish(sums, kernels.tile_pixels, output, rows, tile * t_.tile_pixels, pixels_of(tile), state);
      }
    }
  }

  // The weights [rows, depth] of outputs from `output` on: dense ones in place, others decoded into `scratch`.
  const float* decode(int64_t output, int64_t rows, float* scratch) const {
    const Weight& weight = *c_.weight;
    if (weight.is_dense()) return weight.dense.data() + output * weight.depth();
    const int64_t blocks = weight.blocks_per_row();
    for (int64_t m = 0; m < weight.codebooks; ++m) {
      c_.kernels->decode_rows(weight.codes.data() + (m * weight.outputs + output) * blocks, blocks,
                              weight.codebook.data() + m * weight.centroids * weight.block.dim(), weight.block.dim(),
                              scratch, weight.depth(), rows, blocks, m > 0);
    }
    return scratch;
  }

  Convolution c_;
  Tiling t_;
  int64_t panel_floats_ = 0;    // of one tile
  int64_t weights_floats_ = 0;  // of tile_rows outputs
};

}  // namespace

double decode_cost(const Convolution& c, int threads) {
  const Tiling t = tile(c, threads);
  const double vectors = static_cast<double>(t.num_tiles * t.tile_pixels / c.kernels->lanes);
  const double weights = static_cast<double>(c.weight->outputs * c.patches.depth());
  const double decoded = c.weight->is_dense() ? 0 : static_cast<double>(t.num_blocks * c.weight->codebooks);
  const auto units = static_cast<double>(c.geometry.groups * t.num_blocks * t.output_splits);
  return weights * (vectors + kDecodeCost * decoded) / std::min<double>(units, threads);
}

std::unique_ptr<Step> make_decode_step(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<DecodeStep>(layer, convolution, context);
}

}  // namespace pyquant
