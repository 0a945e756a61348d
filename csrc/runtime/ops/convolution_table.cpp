// The table path: the products of a block's inputs with every centroid are tabulated, and outputs add up table rows.
#include <algorithm>
#include <limits>

#include "base/cache_size.h"
#include "runtime/ops/convolution.h"
#include "runtime/table_rows.h"

namespace pyquant {
namespace {

// One multiply-add of building a table and one load-and-add of summing, in vector multiply-adds of the decode path.
constexpr double kBuildCost = 1.1;
constexpr double kSumCost = 1.2;
constexpr double kFarSumCost = 1.6;  // where tables lie in the second-level cache

// Tables of one pass over the outputs: together they should stay in two thirds of the first-level cache.
int64_t near_bytes() {
  static const int64_t bytes = first_level_cache() * 2 / 3;
  return bytes;
}

// Where fewer of one pass take more than that, tables lie in the second-level cache in any case: so many positions load
// and store sums less often.
constexpr int64_t kFarPositions = 8;

// Outputs that a pass adds up together, and the last one writes while their sums are in the first-level cache.
constexpr int64_t kTogether = 64;

int64_t row_bytes(const Convolution& c) { return c.kernels->table_pixels * static_cast<int64_t>(sizeof(float)); }

bool are_near(const TablePasses& passes) { return passes.per_pass * passes.table_bytes <= near_bytes(); }

TablePasses passes_of(const Convolution& c) {
  const TablePasses passes{*c.weight, row_bytes(c), near_bytes()};
  const TablePasses longer{*c.weight, row_bytes(c), kFarPositions * passes.table_bytes};
  return are_near(passes) || !longer.fit() ? passes : longer;
}

int64_t num_tiles(const Convolution& c) { return ceil_div(c.geometry.pixels(), c.kernels->table_pixels); }

class TableStep : public Step {
 public:
  TableStep(const Layer& layer, const Convolution& convolution)
      : Step(layer.node->name, layer.op, "table"),
        c_(convolution),
        num_tiles_(num_tiles(c_)),
        passes_(passes_of(c_)),
        rows_(table_rows(*c_.weight, passes_, row_bytes(c_))) {
    panel_floats_ = round_up(c_.patches.rows() * c_.kernels->table_pixels, 16);
    table_floats_ = c_.weight->centroids * c_.kernels->table_pixels;
  }

  int64_t scratch_floats() const override {
    return panel_floats_ + passes_.per_pass * table_floats_ + c_.group_outputs() * c_.kernels->table_pixels;
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(c_.geometry.groups * num_tiles_, [&](int64_t unit, int worker) {
      run_unit(unit / num_tiles_, unit % num_tiles_, state, state.scratch[worker]);
    });
  }

 private:
  void run_unit(int64_t group, int64_t tile, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    const Weight& weight = *c_.weight;
    const int64_t pixel = tile * kernels.table_pixels;
    const int64_t pixels = std::min(kernels.table_pixels, c_.geometry.pixels() - pixel);
    const int64_t dim = weight.block.dim();
    float* const tables = scratch;
    float* const sums = tables + passes_.per_pass * table_floats_;
    float* const panel = sums + c_.group_outputs() * kernels.table_pixels;

    c_.patches.pack(state.values[c_.input], group, pixel, pixels, kernels.table_pixels, 0, panel);
    passes_.for_each([&](int64_t first, int64_t count) {
      for (int64_t q = first; q < first + count; ++q) {
        kernels.table_build(weight.codebook.data() + q % weight.codebooks * weight.centroids * dim, weight.centroids,
                            dim, panel + q / weight.codebooks * dim * kernels.table_pixels, pixels,
                            tables + (q - first) * table_floats_);
      }
      add(first, count, tables, sums, {.group = group, .pixel = pixel, .pixels = pixels}, state);
    });
  }

  struct Place {
    int64_t group;
    int64_t pixel, pixels;
  };

  // Add some positions to the sums of all outputs, kTogether at a time; the last pass also writes these. Each pass asks
  // for its share of the memory that they will be written to, if a residual may lie elsewhere.
  void add(int64_t first, int64_t count, const float* tables, float* sums, const Place& place,
           const RunState& state) const {
    const int64_t pass = first / passes_.per_pass;
    const int64_t passes = passes_.num_passes();
    const int64_t end = (place.group + 1) * c_.group_outputs();
    for (int64_t output = place.group * c_.group_outputs(); output < end; output += kTogether) {
      const int64_t outputs = std::min(kTogether, end - output);
      if (c_.expects_residual) {
        const int64_t asked = outputs * pass / passes;
        c_.expect(output + asked, outputs * (pass + 1) / passes - asked, place.pixel, place.pixels, state);
      }
      const uint16_t* rows = rows_.data() + first * c_.weight->outputs + output * count;
      c_.kernels->table_sum(rows, count, tables, sums, outputs, place.pixels, first > 0);
      if (pass + 1 == passes) {
        c_.finish(sums, c_.kernels->table_pixels, output, outputs, place.pixel, place.pixels, state);
      }
      sums += outputs * c_.kernels->table_pixels;
    }
  }

  Convolution c_;
  int64_t num_tiles_;
  TablePasses passes_;
  AlignedBuffer<uint16_t> rows_;
  int64_t panel_floats_ = 0;
  int64_t table_floats_ = 0;  // of one position
};

double cost(const Convolution& c, int threads) {
  const Weight& weight = *c.weight;
  if (!weight.has_codes()) return std::numeric_limits<double>::infinity();
  const TablePasses passes = passes_of(c);
  if (!passes.fit()) return std::numeric_limits<double>::infinity();
  const int64_t units = num_tiles(c) * c.geometry.groups;
  const auto vectors = static_cast<double>(c.kernels->table_pixels / c.kernels->lanes);
  const auto build = static_cast<double>(weight.codebooks * weight.centroids * c.patches.rows());
  const auto sum = static_cast<double>(c.group_outputs() * passes.positions);
  const double sum_cost = are_near(passes) ? kSumCost : kFarSumCost;
  return static_cast<double>(ceil_div(units, threads)) * vectors * c.kernels->table_cost() *
         (kBuildCost * build + sum_cost * sum);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext&) {
  return std::make_unique<TableStep>(layer, convolution);
}

}  // namespace

Path table_path() { return {.kernel = "table", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
