// The table path in integers: products of a block's bytes with every centroid, as int16, and sums of these.
//
// A pass over the outputs adds the tables of some positions within 16 bits: tables are scaled down so far that the
// codes that a layer has cannot make a larger sum, whatever the inputs. Passes are added in 32 bits.
#include <algorithm>
#include <limits>
#include <vector>

#include "runtime/ops/block_inputs.h"
#include "runtime/ops/byte_convolution.h"
#include "runtime/ops/table_shares.h"
#include "runtime/table_rows.h"

namespace pyquant {
namespace {

// In fp32 multiply-adds: making a row of a table of products, but for the products themselves, and adding one, for a
// vector of int16.
constexpr double kRowCost = 2.0;
constexpr double kSumCost = 1.05;
constexpr double kPassCost = 8.0;  // reading and writing the sums of an output

constexpr int64_t kOutputs = 8;  // ranges of them begin at whole quads

// Outputs that a pass adds up together, and the last one finishes while their sums are in the first-level cache.
constexpr int64_t kTogether = 32;

// Tables of one pass over the outputs. Shorter passes read and write sums more often than they save loads from the
// second-level cache.
constexpr int64_t kTableBytes = 48 * 1024;

int64_t row_bytes(const Convolution& c) { return c.kernels->table8_pixels * static_cast<int64_t>(sizeof(int16_t)); }

// As many positions for every instruction set, however wide its tables are: what a pass adds decides how tables are
// rounded.
TablePasses passes_of(const Convolution& c) {
  TablePasses passes{*c.weight, row_bytes(c), 0};
  passes.per_pass =
      TablePasses{*c.weight, kMostTilePixels * static_cast<int64_t>(sizeof(int16_t)), kTableBytes}.per_pass;
  return passes;
}

TableShares shares_of(const Convolution& c, int threads) {
  return {c, c.kernels->table8_pixels, 2 * c.kernels->lanes, kOutputs, threads};
}

class Table8Step : public Step {
 public:
  Table8Step(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "table8"),
        b_(convolution, context),
        inputs_(convolution, convolution.kernels->table8_pixels),
        units_(shares_of(convolution, context.threads).units()),
        passes_(passes_of(convolution)),
        rows_(table_rows(*convolution.weight, passes_, row_bytes(convolution))),
        dim_(BlockInputs::block_quads(*convolution.weight)) {
    const AlignedBuffer<float> values = b_.take_codebooks();
    b_.weight_sums = row_sums(*b_.c.weight, values);
    quads_ = BlockInputs::centroid_quads(*b_.c.weight, values);
    shift_ = smallest_shift(values);
    b_.settle(shift_, context);
  }

  int64_t scratch_floats() const override {
    const int64_t pixels = b_.c.kernels->table8_pixels;
    return inputs_.floats() + round_up(passes_.per_pass * table_values() / 2, 16) +
           round_up(b_.c.weight->outputs, kQuad) * pixels + b_.finish_floats(pixels);
  }

  int64_t shared_floats() const override { return b_.epilogue_floats(); }

  void run(const RunState& state) const override {
    b_.write_epilogue(state, state.shared);
    state.pool->parallel_for(static_cast<int64_t>(units_.size()),
                             [&](int64_t unit, int worker) { run_unit(units_[unit], state, state.scratch[worker]); });
  }

 private:
  int64_t table_values() const { return b_.c.weight->centroids * b_.c.kernels->table8_pixels; }

  // With which no sum of a pass, each table entry rounded upwards, can leave int16.
  int64_t smallest_shift(const AlignedBuffer<float>& values) const {
    const Weight& weight = *b_.c.weight;
    const int64_t dim = weight.block.dim();
    struct Bounds {
      int64_t low = 0, high = 0;
    };
    std::vector<Bounds> bounds(weight.codebooks * weight.centroids);
    for (size_t k = 0; k < bounds.size(); ++k) {
      for (int64_t i = 0; i < dim; ++i) {
        const auto most = kMostInput * static_cast<int64_t>(values[k * dim + i]);
        (most < 0 ? bounds[k].low : bounds[k].high) += most;
      }
    }
    int64_t most = 0;
    passes_.for_each([&](int64_t first, int64_t count) {
      for (int64_t o = 0; o < weight.outputs; ++o) {
        Bounds sum;
        for (int64_t q = first; q < first + count; ++q) {
          const Bounds& bound = bounds[q % weight.codebooks * weight.centroids + code_at(weight, o, q)];
          sum.low += bound.low;
          sum.high += bound.high;
        }
        most = std::max({most, -sum.low, sum.high});
      }
    });
    // Entries are packed with saturation, also those that no code of this layer names at some position.
    for (const Bounds& bound : bounds) most = std::max({most, -bound.low, bound.high});
    int64_t shift = 0;
    while ((most >> shift) + passes_.per_pass + 1 > INT16_MAX) ++shift;
    return shift;
  }

  void run_unit(const TableUnit& unit, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *b_.c.kernels;
    const Weight& weight = *b_.c.weight;
    const int64_t pitch = kernels.table8_pixels;
    auto* const sums = reinterpret_cast<int32_t*>(scratch);
    float* const panel = scratch + round_up(weight.outputs, kQuad) * pitch;
    auto* const tables = reinterpret_cast<int16_t*>(panel + inputs_.floats());
    float* const rest = panel + inputs_.floats() + round_up(passes_.per_pass * table_values() / 2, 16);
    const uint32_t* const inputs = inputs_.write(b_.c, state, unit.pixel, unit.pixels, panel);
    passes_.for_each([&](int64_t first, int64_t count) {
      for (int64_t q = first; q < first + count; ++q) {
        kernels.table_build8(quads_.data() + q % weight.codebooks * weight.centroids * dim_, weight.centroids, dim_,
                             inputs + q / weight.codebooks * dim_ * pitch, unit.pixels, shift_,
                             tables + (q - first) * table_values());
      }
      add(unit, first, count, tables, sums, state, rest);
    });
  }

  // Add some positions to the sums of all outputs of a unit, kTogether at a time; the last pass also finishes these.
  void add(const TableUnit& unit, int64_t first, int64_t count, const int16_t* tables, int32_t* sums,
           const RunState& state, float* rest) const {
    const int64_t pitch = b_.c.kernels->table8_pixels;
    const bool is_last = first + count == passes_.positions;
    const int64_t end = unit.output + unit.outputs;
    for (int64_t output = unit.output; output < end; output += kTogether) {
      const int64_t outputs = std::min(kTogether, end - output);
      const uint16_t* const rows = rows_.data() + first * b_.c.weight->outputs + output * count;
      b_.c.kernels->table_sum8(rows, count, tables, sums, outputs, unit.pixels, first > 0);
      if (is_last) b_.finish(sums, pitch, output, outputs, unit.pixel, unit.pixels, state.shared, state, rest);
      if (passes_.num_passes() > 1) sums += outputs * pitch;
    }
  }

  ByteConvolution b_;
  BlockInputs inputs_;
  std::vector<TableUnit> units_;
  TablePasses passes_;
  AlignedBuffer<uint16_t> rows_;
  int64_t dim_;  // quads of a block
  AlignedBuffer<uint32_t> quads_;
  int64_t shift_ = 0;
};

double cost(const Convolution& c, int threads) {
  if (!BlockInputs::exist(c)) return std::numeric_limits<double>::infinity();
  const Weight& weight = *c.weight;
  const TablePasses passes = passes_of(c);
  if (!passes.fit()) return std::numeric_limits<double>::infinity();
  const auto row = 2 * c.kernels->tile8.step_cost * static_cast<double>(BlockInputs::block_quads(weight)) + kRowCost;
  const auto positions = static_cast<double>(passes.positions);
  const auto cost_of = [&](int64_t pixels, int64_t outputs) {
    const double sums = kSumCost * positions + kPassCost * static_cast<double>(passes.num_passes());
    const double vector = positions * row * static_cast<double>(weight.centroids) + sums * static_cast<double>(outputs);
    return static_cast<double>(ceil_div(pixels, 2 * c.kernels->lanes)) * vector;
  };
  return c.kernels->table_cost() * shares_of(c, threads).cost(cost_of);
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<Table8Step>(layer, convolution, context);
}

}  // namespace

Path table8_path() { return {.kernel = "table8", .reads = Format::kBytes, .cost = &cost, .make = &make}; }

}  // namespace pyquant
