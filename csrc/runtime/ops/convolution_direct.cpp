// The direct path: panels of unfolded inputs are multiplied with weights, a few outputs at a time.
//
// Weights are read from the codebook by way of their codes while they are multiplied. Only what has too many additive
// codebooks for that is decoded first, a few rows at a time.
#include <algorithm>

#include "runtime/coded_rows.h"
#include "runtime/ops/convolution.h"

namespace pyquant {
namespace {

// Decoding one weight, in vector multiply-adds.
constexpr double kDecodeCost = 0.3;

Tiling tile(const Convolution& c, int threads) {
  return Tiling(c, c.geometry.pixels(), c.patches.depth() * static_cast<int64_t>(sizeof(float)), threads);
}

class DirectStep : public Step {
 public:
  DirectStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "direct"),
        c_(convolution),
        t_(tile(convolution, context.threads)),
        row_tiles_(ceil_div(t_.group_outputs, t_.tile_rows)) {
    const int64_t depth = c_.patches.depth();
    panel_floats_ = round_up(depth * t_.pitch, 16);
    const Weight& weight = *c_.weight;
    if (has_joint_codebook(weight)) {
      codes_ = joint_codes(weight, t_.groups, t_.tile_rows);
      if (weight.codebooks > 1) codebook_ = joint_codebook(weight);
      return;
    }
    // Rows of a matrix are their own codebook: see gemm_tile.
    codes_ = AlignedBuffer<uint16_t>(row_tiles_ * t_.tile_rows);
    for (int64_t row = 0; row < codes_.size(); ++row) {
      codes_[row] = static_cast<uint16_t>(row < t_.group_outputs ? row % t_.tile_rows : 0);
    }
    if (!weight.is_dense()) weights_floats_ = round_up(t_.tile_rows * depth + kSlackBytes / 4, 16);
  }

  int64_t scratch_floats() const override {
    return t_.tiles_per_block * panel_floats_ + weights_floats_ + t_.tile_rows * c_.kernels->tile_pixels;
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(
        t_.units(), [&](int64_t index, int worker) { run_unit(t_.unit(index), state, state.scratch[worker]); });
  }

 private:
  // The weights of a tile of output rows, as gemm_tile takes them.
  struct Rows {
    const uint16_t* codes;
    const float* codebook;
    int64_t dim;
    int64_t blocks;
  };

  void run_unit(const Tiling::Unit& unit, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    float* const panels = scratch;
    float* const weights = panels + t_.tiles_per_block * panel_floats_;
    float* const sums = weights + weights_floats_;
    const auto panel = [&](int64_t tile) { return panels + (tile - unit.first_tile) * panel_floats_; };

    for (int64_t tile = unit.first_tile; tile < unit.last_tile; ++tile) {
      c_.patches.pack(state.values[c_.input], unit.group, tile * t_.tile_lanes, t_.lanes_of(tile), t_.pitch,
                      panel(tile));
    }
    for (int64_t output = unit.first_output; output < unit.last_output; output += t_.tile_rows) {
      const int64_t count = std::min(t_.tile_rows, unit.last_output - output);
      const Rows rows = rows_from(output, count, weights);
      for (int64_t tile = unit.first_tile; tile < unit.last_tile; ++tile) {
        kernels.gemm_tile(rows.codes, rows.codebook, rows.dim, rows.blocks, panel(tile), t_.pitch, sums,
                          kernels.tile_pixels, t_.lanes_of(tile));
        c_.finish(sums, kernels.tile_pixels, output, count, tile * t_.tile_lanes, t_.lanes_of(tile), state);
      }
    }
  }

  // The weights of `count` outputs from `output` on, the first of a row tile; decoded into `scratch` where they must
  // be.
  Rows rows_from(int64_t output, int64_t count, float* scratch) const {
    const Weight& weight = *c_.weight;
    const int64_t row_tile = output % t_.group_outputs / t_.tile_rows;
    const int64_t depth = weight.depth();
    const int64_t blocks = weight.blocks_per_row();
    const int64_t dim = weight.block.dim();
    if (has_joint_codebook(weight)) {
      const int64_t tile = output / t_.group_outputs * row_tiles_ + row_tile;
      return {.codes = codes_.data() + tile * blocks * t_.tile_rows,
              .codebook = codebook_.empty() ? weight.codebook.data() : codebook_.data(),
              .dim = dim,
              .blocks = blocks};
    }
    const uint16_t* codes = codes_.data() + row_tile * t_.tile_rows;
    if (weight.is_dense()) {
      return {.codes = codes, .codebook = weight.dense.data() + output * depth, .dim = depth, .blocks = 1};
    }
    c_.decode(output, count, scratch, depth);
    return {.codes = codes, .codebook = scratch, .dim = depth, .blocks = 1};
  }

  Convolution c_;
  Tiling t_;
  int64_t row_tiles_;  // of a group
  AlignedBuffer<uint16_t> codes_;
  AlignedBuffer<float> codebook_;  // the joint one; empty: the weight's own
  int64_t panel_floats_ = 0;       // of one tile
  int64_t weights_floats_ = 0;     // of a row tile that has to be decoded
};

double cost(const Convolution& c, int threads) {
  const Tiling t = tile(c, threads);
  const auto tiles = static_cast<double>(t.num_tiles);
  // Below one vector, loads of weights are what takes time.
  const double width = static_cast<double>(t.tile_lanes) / static_cast<double>(c.kernels->lanes);
  const double vectors = tiles * std::max(width, 1.0);
  const auto weights = static_cast<double>(c.weight->outputs * c.patches.depth());
  const double found = has_joint_codebook(*c.weight) ? kFindCost * tiles
                       : c.weight->is_dense() ? 0.0
                                              : kDecodeCost * static_cast<double>(t.num_blocks * c.weight->codebooks);
  return weights * (vectors + found) / std::min<double>(static_cast<double>(t.units()), threads);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<DirectStep>(layer, convolution, context);
}

}  // namespace

Path direct_path() { return {.kernel = "direct", .cost = &cost, .make = &make}; }

}  // namespace pyquant
