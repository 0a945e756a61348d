// The table path in integers: products of a block's bytes with every centroid, as int16, and sums of these.
//
// A pass over the outputs adds the tables of some positions within 16 bits: tables are scaled down so far that the
// codes that a layer has cannot make a larger sum, whatever the inputs. Passes are added in 32 bits.
//
// Blocks of 4, 8.. channels take quads of channels as they are. For spatial blocks, quads of channels are turned into
// quads of taps: each channel of a block has its taps, four to a quad.
#include <algorithm>
#include <limits>
#include <vector>

#include "runtime/ops/byte_convolution.h"
#include "runtime/table_rows.h"

namespace pyquant {
namespace {

constexpr int64_t kMostInput = 255;

// In fp32 multiply-adds: making a row of a table of products, but for the products themselves, and adding one, for a
// vector of int16.
constexpr double kRowCost = 2.0;
constexpr double kSumCost = 1.05;
constexpr double kPassCost = 8.0;  // reading and writing the sums of an output

constexpr int64_t kRangeMultiple = 8;  // ranges of outputs begin at whole quads

// Tables of one pass over the outputs. Shorter passes read and write sums more often than they save loads from the
// second-level cache.
constexpr int64_t kTableBytes = 48 * 1024;

bool applies(const Convolution& c) {
  const Weight& weight = *c.weight;
  if (!weight.has_codes() || c.geometry.groups != 1 || !sums_fit(weight)) return false;
  const Block& block = weight.block;
  if (block.rows == 1 && block.columns == 1 && block.channels % kQuad == 0) return true;
  // Tail blocks are within the last quad of channels.
  if (weight.blocks_per_row() * block.channels > round_up(weight.channels, kQuad)) return false;
  return block.rows == weight.kernel_rows && block.columns == weight.kernel_columns && block.dim() > 1;
}

bool turns(const Weight& weight) {
  return weight.block.rows * weight.block.columns > 1 || weight.block.channels % kQuad;
}

// Quads of a block, and of a channel of one whose quads are taps.
int64_t channel_quads(const Weight& weight) { return ceil_div(weight.block.rows * weight.block.columns, kQuad); }
int64_t block_quads(const Weight& weight) {
  return turns(weight) ? weight.block.channels * channel_quads(weight) : weight.block.channels / kQuad;
}

int64_t row_bytes(const Convolution& c) { return c.kernels->table8_pixels * static_cast<int64_t>(sizeof(int16_t)); }

// As many positions for every instruction set, however wide its tables are: what a pass adds decides how tables are
// rounded.
TablePasses passes_of(const Convolution& c) {
  TablePasses passes{*c.weight, row_bytes(c), 0};
  passes.per_pass =
      TablePasses{*c.weight, kMostTilePixels * static_cast<int64_t>(sizeof(int16_t)), kTableBytes}.per_pass;
  return passes;
}

// A tile of pixels, and outputs that are computed for it.
struct Unit {
  int64_t pixel;
  int64_t pixels;
  int64_t output;
  int64_t outputs;
};

// How the work is shared out: every thread has the same number of vectors of pixels. Of the few that are left, it has a
// range of outputs, for which the tables are built again.
struct Shares {
  Shares(const Convolution& c, int threads_)
      : threads(threads_),
        pixels(c.geometry.pixels()),
        outputs(c.weight->outputs),
        tile(c.kernels->table8_pixels),
        own_pixels(std::min(ceil_div(pixels, 2 * c.kernels->lanes) / threads * 2 * c.kernels->lanes, pixels)),
        left_pixels(std::max<int64_t>(pixels - threads * own_pixels, 0)),
        left_outputs(std::min(round_up(ceil_div(outputs, threads), kRangeMultiple), outputs)) {}

  // In the order of the threads that are to take them.
  std::vector<Unit> units() const {
    std::vector<Unit> units;
    for (int64_t thread = 0; thread < threads; ++thread) {
      const int64_t end = std::min((thread + 1) * own_pixels, pixels);
      for (int64_t p = thread * own_pixels; p < end; p += tile) {
        units.push_back({.pixel = p, .pixels = std::min(tile, end - p), .output = 0, .outputs = outputs});
      }
      const int64_t output = thread * left_outputs;
      for (int64_t p = pixels - left_pixels; p < pixels && output < outputs; p += tile) {
        units.push_back({.pixel = p,
                         .pixels = std::min(tile, pixels - p),
                         .output = output,
                         .outputs = std::min(left_outputs, outputs - output)});
      }
    }
    return units;
  }

  int64_t threads;
  int64_t pixels;
  int64_t outputs;
  int64_t tile;
  int64_t own_pixels;  // of each thread
  int64_t left_pixels;
  int64_t left_outputs;  // of each thread
};

// The order of quads of channels in a panel.
WeightOrder panel_order(const Weight& weight) {
  return quad_order(weight, turns(weight) ? QuadSource::kStored : QuadSource::kCentroid);
}

class Table8Step : public Step {
 public:
  Table8Step(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "table8"),
        b_(convolution, context),
        patches_(in_quads(convolution.geometry), panel_order(*convolution.weight), convolution.kernels),
        units_(Shares(convolution, context.threads).units()),
        passes_(passes_of(convolution)),
        rows_(table_rows(*convolution.weight, passes_, row_bytes(convolution))),
        turns_(turns(*convolution.weight)),
        dim_(block_quads(*convolution.weight)) {
    const Weight& weight = *b_.c.weight;
    const ByteCodebooks bytes = byte_codebooks(weight);
    b_.weight_scale.assign(weight.outputs, bytes.scale);
    b_.weight_sums = row_sums(weight, bytes.values);
    write_quads(bytes.values);
    shift_ = smallest_shift(bytes.values);
  }

  int64_t scratch_floats() const override {
    const int64_t pixels = b_.c.kernels->table8_pixels;
    return panel_quads() + turned_quads() + round_up(passes_.per_pass * table_values() / 2, 16) +
           round_up(b_.c.weight->outputs, kQuad) * pixels + b_.finish_floats(pixels);
  }

  int64_t shared_floats() const override { return b_.epilogue_floats(); }

  void run(const RunState& state) const override {
    b_.write_epilogue(shift_, state, state.shared);
    state.pool->parallel_for(static_cast<int64_t>(units_.size()),
                             [&](int64_t unit, int worker) { run_unit(units_[unit], state, state.scratch[worker]); });
  }

 private:
  int64_t table_values() const { return b_.c.weight->centroids * b_.c.kernels->table8_pixels; }
  int64_t panel_quads() const { return patches_.rows() * b_.c.kernels->table8_pixels; }
  int64_t turned_quads() const {
    const Weight& weight = *b_.c.weight;
    return turns_ ? ceil_div(weight.channels, kQuad) * kQuad * channel_quads(weight) * b_.c.kernels->table8_pixels : 0;
  }

  // Codebooks as [M, K, quads of a block].
  void write_quads(const AlignedBuffer<float>& values) {
    const Weight& weight = *b_.c.weight;
    const int64_t run = turns_ ? weight.block.rows * weight.block.columns : weight.block.channels;
    quads_ = AlignedBuffer<uint32_t>(weight.codebooks * weight.centroids * dim_);
    uint32_t* quad = quads_.data();
    for (int64_t first = 0; first < values.size(); first += run) {
      for (int64_t i = 0; i < run; i += kQuad) *quad++ = quad_of(values.data() + first + i, run - i);
    }
  }

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

  void run_unit(const Unit& unit, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *b_.c.kernels;
    const Weight& weight = *b_.c.weight;
    const int64_t pitch = kernels.table8_pixels;
    auto* const sums = reinterpret_cast<int32_t*>(scratch);
    float* const panel = scratch + round_up(weight.outputs, kQuad) * pitch;
    float* const turned = panel + panel_quads();
    auto* const tables = reinterpret_cast<int16_t*>(turned + turned_quads());
    float* const rest = turned + turned_quads() + round_up(passes_.per_pass * table_values() / 2, 16);

    patches_.pack(state.values[b_.c.input], 0, unit.pixel, unit.pixels, pitch, state.quantization[b_.c.input].zeros(),
                  panel);
    const auto* inputs = reinterpret_cast<const uint32_t*>(panel);
    if (turns_) {
      const int64_t taps = weight.kernel_rows * weight.kernel_columns;
      const int64_t quads = kQuad * channel_quads(weight);
      for (int64_t c = 0; c < ceil_div(weight.channels, kQuad); ++c) {
        kernels.turn_quads(inputs + c * taps * pitch, pitch, taps, unit.pixels,
                           reinterpret_cast<uint32_t*>(turned) + c * quads * pitch);
      }
      inputs = reinterpret_cast<const uint32_t*>(turned);
    }
    passes_.for_each([&](int64_t first, int64_t count) {
      for (int64_t q = first; q < first + count; ++q) {
        kernels.table_build8(quads_.data() + q % weight.codebooks * weight.centroids * dim_, weight.centroids, dim_,
                             inputs + q / weight.codebooks * dim_ * pitch, unit.pixels, shift_,
                             tables + (q - first) * table_values());
      }
      kernels.table_sum8(rows_.data() + first * weight.outputs + unit.output * count, count, tables, sums, unit.outputs,
                         unit.pixels, first > 0);
    });
    b_.finish(sums, pitch, unit.output, unit.outputs, unit.pixel, unit.pixels, state.shared, state, rest);
  }

  ByteConvolution b_;
  Patches patches_;
  std::vector<Unit> units_;
  TablePasses passes_;
  AlignedBuffer<uint16_t> rows_;
  bool turns_;   // whether quads of channels become quads of taps
  int64_t dim_;  // quads of a block
  AlignedBuffer<uint32_t> quads_;
  int64_t shift_ = 0;
};

double cost(const Convolution& c, int threads) {
  if (!applies(c)) return std::numeric_limits<double>::infinity();
  const Weight& weight = *c.weight;
  const TablePasses passes = passes_of(c);
  if (!passes.fit()) return std::numeric_limits<double>::infinity();
  const Shares shares(c, threads);
  const auto row = 2 * c.kernels->tile8.step_cost * static_cast<double>(block_quads(weight)) + kRowCost;
  const auto positions = static_cast<double>(passes.positions);
  const auto cost_of = [&](int64_t pixels, int64_t outputs) {
    const double sums = kSumCost * positions + kPassCost * static_cast<double>(passes.num_passes());
    const double vector = positions * row * static_cast<double>(weight.centroids) + sums * static_cast<double>(outputs);
    return static_cast<double>(ceil_div(pixels, 2 * c.kernels->lanes)) * vector;
  };
  return c.kernels->table_cost() *
         (cost_of(shares.own_pixels, shares.outputs) + cost_of(shares.left_pixels, shares.left_outputs));
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<Table8Step>(layer, convolution, context);
}

}  // namespace

Path table8_path() { return {.kernel = "table8", .reads = Format::kBytes, .cost = &cost, .make = &make}; }

}  // namespace pyquant
