// The table path: the products of a block's inputs with every centroid are tabulated, and outputs add up table rows.
//
// Additive codebooks are tabulated side by side: position q = j * M + m of an output's sum is the m-th code of block j.
#include <algorithm>
#include <limits>

#include "runtime/ops/convolution.h"

namespace pyquant {
namespace {

// One multiply-add of building a table and one load-and-add of summing, in vector multiply-adds of the decode path.
constexpr double kBuildCost = 1.3;
constexpr double kSumCost = 1.6;

class TableStep : public Step {
 public:
  TableStep(const Layer& layer, const Convolution& convolution, int64_t num_tiles)
      : Step(layer.node->name, layer.op, "table"), c_(convolution), num_tiles_(num_tiles) {
    const Weight& weight = *c_.weight;
    const int64_t positions = weight.blocks_per_row() * weight.codebooks;
    num_passes_ = ceil_div(positions, kBlocksPerPass);
    codes_ = AlignedBuffer<uint16_t>(num_passes_ * weight.outputs * kBlocksPerPass);
    // Positions behind the last read row 0 of a table of zeros.
    std::fill_n(codes_.data(), codes_.size(), uint16_t{0});
    for (int64_t q = 0; q < positions; ++q) {
      const int64_t j = q / weight.codebooks;
      const int64_t m = q % weight.codebooks;
      for (int64_t o = 0; o < weight.outputs; ++o) {
        codes_[(q / kBlocksPerPass * weight.outputs + o) * kBlocksPerPass + q % kBlocksPerPass] =
            weight.codes[(m * weight.outputs + o) * weight.blocks_per_row() + j];
      }
    }
    panel_floats_ = round_up(c_.patches.depth() * c_.kernels->table_pixels + Patches::kRunOver, 16);
    table_floats_ = weight.centroids * c_.kernels->table_pixels;
  }

  int64_t scratch_floats() const override {
    return panel_floats_ + kBlocksPerPass * table_floats_ + c_.group_outputs() * c_.kernels->table_pixels;
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(c_.geometry.groups * num_tiles_, [&](int64_t unit, int worker) {
      run_unit(unit / num_tiles_, unit % num_tiles_, state, state.scratch[worker]);
    });
  }

 private:
  void run_unit(int64_t group, int64_t tile, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    const int64_t pixel = tile * kernels.table_pixels;
    const int64_t pixels = std::min(kernels.table_pixels, c_.geometry.pixels() - pixel);
    float* const tables = scratch;
    float* const sums = tables + kBlocksPerPass * table_floats_;
    float* const panel = sums + c_.group_outputs() * kernels.table_pixels;

    c_.patches.pack(state.values[c_.input], group, pixel, pixels, kernels.table_pixels, panel);
    std::fill_n(sums, c_.group_outputs() * kernels.table_pixels, 0.0f);
    for (int64_t pass = 0; pass < num_passes_; ++pass) {
      for (int64_t b = 0; b < kBlocksPerPass; ++b) {
        build_table(pass * kBlocksPerPass + b, panel, pixels, tables + b * table_floats_);
      }
      const int64_t first = pass * c_.weight->outputs + group * c_.group_outputs();
      kernels.table_sum(codes_.data() + first * kBlocksPerPass, tables, table_floats_, sums, c_.group_outputs());
    }
    c_.finish(sums, kernels.table_pixels, group * c_.group_outputs(), c_.group_outputs(), pixel, pixels, state);
  }

  // table[k][p] = centroid k of position q's codebook, multiplied with the inputs of q's block for pixel p.
  void build_table(int64_t q, const float* panel, int64_t pixels, float* table) const {
    const KernelTable& kernels = *c_.kernels;
    const Weight& weight = *c_.weight;
    const int64_t j = q / weight.codebooks;
    if (j >= weight.blocks_per_row()) {
      std::fill_n(table, kernels.table_pixels, 0.0f);
      return;
    }
    const int64_t dim = weight.block.dim();
    const float* codebook = weight.codebook.data() + q % weight.codebooks * weight.centroids * dim;
    for (int64_t k = 0; k < weight.centroids; k += kernels.tile_rows) {
      kernels.gemm_tile(codebook + k * dim, dim, panel + j * dim * kernels.table_pixels, kernels.table_pixels,
                        table + k * kernels.table_pixels, kernels.table_pixels,
                        std::min(kernels.tile_rows, weight.centroids - k), pixels, dim);
    }
  }

  Convolution c_;
  int64_t num_tiles_;
  int64_t num_passes_ = 0;
  AlignedBuffer<uint16_t> codes_;  // [num_passes, O, kBlocksPerPass]
  int64_t panel_floats_ = 0;
  int64_t table_floats_ = 0;  // of one position
};

int64_t num_tiles(const Convolution& c) { return ceil_div(c.geometry.pixels(), c.kernels->table_pixels); }

}  // namespace

double table_cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (weight.is_dense()) return std::numeric_limits<double>::infinity();
  const int64_t units = num_tiles(c) * c.geometry.groups;
  const auto vectors = static_cast<double>(c.kernels->table_pixels / c.kernels->lanes);
  const auto build = static_cast<double>(weight.codebooks * weight.centroids * c.patches.depth());
  const auto sum = static_cast<double>(c.group_outputs() * weight.codebooks * weight.blocks_per_row());
  return static_cast<double>(ceil_div(units, threads)) * vectors * (kBuildCost * build + kSumCost * sum);
}

std::unique_ptr<Step> make_table_step(const Layer& layer, const Convolution& convolution, const PlanContext&) {
  return std::make_unique<TableStep>(layer, convolution, num_tiles(convolution));
}

}  // namespace pyquant
