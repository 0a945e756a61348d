// The Winograd path: 3x3 convolutions by F(2x2, 3x3) or F(4x4, 3x3), with 2.25 or 4 times fewer multiplications.
//
// Inputs of a tile of m x m outputs are transformed into (m + 2)² frequencies, each a matrix product over channels, and
// the products back into outputs. The transform of weights is linear, so that codes name transformed centroids just as
// well: a joint codebook is transformed once, and weights are read from it while they are multiplied. Other weights, a
// few outputs at a time, are decoded where they must be, and transformed in each run.
//
// Dimensions: D channels of a group, tail blocks padded · F = (m + 2)² frequencies · tiles are lanes
#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/winograd.h"
#include "runtime/coded_rows.h"
#include "runtime/ops/convolution.h"
#include "runtime/ops/tiling.h"
#include "runtime/ops/winograd_tiles.h"

namespace pyquant {
namespace {

// What transforming one vector of tiles costs, in vector multiply-adds: the inputs of a channel, and those of an
// output.
struct Transform {
  const WinogradMatrices& matrices;
  double input_cost;
  double output_cost;
};

constexpr Transform kTransform2{.matrices = kWinograd2x2, .input_cost = 120, .output_cost = 100};
constexpr Transform kTransform4{.matrices = kWinograd4x4, .input_cost = 400, .output_cost = 350};

bool reads_codebook(const Weight& weight) {
  return has_joint_codebook(weight) && weight.block.rows == 3 && weight.block.columns == 3;
}

// Of a kernel of 3 x 3 that is not read from a codebook, in vector multiply-adds: to decode its weights, to transform
// them, and to write and read them where there is no room in the first-level cache.
double kernel_cost(const Weight& weight) {
  constexpr double kTransformCost = 24;
  return reads_codebook(weight) ? 0.0 : kTransformCost + 9 * decode_cost(weight);
}

Tiling tiling_of(const Convolution& c, const WinogradMatrices& matrices, int threads) {
  const int64_t tiles = WinogradTiles{c.geometry, matrices.outputs}.count();
  const int64_t channels = c.weight->depth() / 9;
  // Transforms of inputs are too much work to be done by every thread.
  const SideCosts costs{.decode = kernel_cost(*c.weight) / static_cast<double>(matrices.frequencies()),
                        .repeat = std::numeric_limits<double>::infinity()};
  return Tiling(*c.kernels, c.kernels->tile, c.geometry.groups, c.group_outputs(), tiles,
                matrices.frequencies() * channels, threads, costs);
}

// The transform of a codebook [K, channels, 3, 3] as [F, K, channels].
AlignedBuffer<float> transformed(const AlignedBuffer<float>& codebook, const WinogradMatrices& matrices) {
  const int64_t kernels = codebook.size() / 9;
  AlignedBuffer<float> result(matrices.frequencies() * kernels);
  for (int64_t f = 0; f < matrices.frequencies(); ++f) {
    for (int64_t kernel = 0; kernel < kernels; ++kernel) {
      result[f * kernels + kernel] = static_cast<float>(matrices.frequency(f, codebook.data() + kernel * 9));
    }
  }
  return result;
}

class WinogradStep : public Step {
 public:
  WinogradStep(const Layer& layer, const Convolution& convolution, const PlanContext& context,
               const WinogradMatrices& matrices)
      : Step(layer.node->name, layer.op, &matrices == &kWinograd2x2 ? "winograd2" : "winograd4"),
        c_(convolution),
        matrices_(matrices),
        tiles_{convolution.geometry, matrices.outputs},
        kernels_(&matrices == &kWinograd2x2 ? c_.kernels->winograd2 : c_.kernels->winograd4),
        t_(tiling_of(convolution, matrices, context.threads)),
        channels_(c_.weight->depth() / 9),
        frequency_floats_(channels_ * t_.pitch),
        line_floats_(matrices.outputs * t_.pitch),
        rows_(rows_apart(channels_, t_.pitch)),
        reads_codebook_(reads_codebook(*c_.weight)) {
    if (!reads_codebook_) {
      if (c_.weight->dense.empty()) kept_ = c_.kept_rows(context);
      return;
    }
    at_ = joint_codes(*c_.weight, c_.geometry.groups, t_.tile_rows, c_.weight->block.channels);
    codebook_ = transformed(joint_codebook(*c_.weight, c_.weight->codebook), matrices);
  }

  int64_t scratch_floats() const override {
    const int64_t lines = line_floats_ * matrices_.outputs * t_.tile_rows;
    return t_.own_panel_floats() + product_floats() + lines + weights_floats() + row_floats();
  }

  int64_t shared_floats() const override { return t_.shared_floats(); }

  void run(const RunState& state) const override {
    run_tiled(
        t_, state,
        [&](const PanelPart& part, float* panel, float*) { transform_inputs(state.values[c_.input], part, panel); },
        [&](const TiledWork& work, float* scratch) { multiply(work, state, scratch); });
  }

 private:
  int64_t product_floats() const { return matrices_.frequencies() * t_.tile_rows * t_.pitch; }

  // Of the transformed weights of a row tile, [F, tile_rows, D], and of those of a row that is decoded.
  int64_t weights_floats() const {
    return reads_codebook_ ? 0 : round_up(matrices_.frequencies() * t_.tile_rows * channels_, 16);
  }
  int64_t row_floats() const {
    return reads_codebook_ || !c_.weight->dense.empty() ? 0 : c_.weight->depth() + kSlackBytes / 4;
  }

  // The weights of a row tile, as gemm_tile takes those of a frequency.
  struct Rows {
    const uint16_t* at;
    const float* values;
    int64_t frequency_floats;
    int64_t dim;
    int64_t blocks;
  };

  // Those of `count` outputs of a group from `row` on, written to `scratch` where they must be.
  Rows rows_from(int64_t group, int64_t row, int64_t count, float* scratch) const {
    const Weight& weight = *c_.weight;
    if (reads_codebook_) {
      const int64_t row_tile = group * t_.row_tiles() + row / t_.tile_rows, blocks = weight.blocks_per_row();
      return {.at = at_.data() + row_tile * blocks * t_.tile_rows,
              .values = codebook_.data(),
              .frequency_floats = codebook_.size() / matrices_.frequencies(),
              .dim = weight.block.channels,
              .blocks = blocks};
    }
    const int64_t matrix = t_.tile_rows * channels_;
    const AlignedBuffer<float>* const whole = weight.dense.empty() ? kept_.get() : &weight.dense;
    float* const decoded = scratch + weights_floats();
    for (int64_t r = 0; r < count; ++r) {
      const int64_t output = group * t_.outputs + row + r;
      if (whole == nullptr) c_.decode(output, 1, decoded, weight.depth());
      const float* const kernels = whole == nullptr ? decoded : whole->data() + output * weight.depth();
      kernels_.weights(kernels, channels_, scratch + r * channels_, matrix);
    }
    // Rows behind the last output are multiplied, too: numbers without meaning may take long.
    for (int64_t f = 0; f < matrices_.frequencies() && count < t_.tile_rows; ++f) {
      std::fill(scratch + f * matrix + count * channels_, scratch + (f + 1) * matrix, 0.0f);
    }
    return {.at = nullptr, .values = scratch, .frequency_floats = matrix, .dim = channels_, .blocks = 1};
  }

  void multiply(const TiledWork& work, const RunState& state, float* scratch) const {
    float* const products = scratch;
    float* const lines = products + product_floats();
    float* const weights = lines + line_floats_ * matrices_.outputs * t_.tile_rows;
    for (int64_t row = work.first_output; row < work.last_output; row += t_.tile_rows) {
      const Rows rows = rows_from(work.group, row, std::min(t_.tile_rows, work.last_output - row), weights);
      const float* panel = work.panels;
      for (int64_t tile = work.first_tile; tile < work.last_tile; ++tile, panel += t_.panel_floats()) {
        for (int64_t f = 0; f < matrices_.frequencies(); ++f) {
          c_.kernels->gemm_tile(rows.at, rows.values + f * rows.frequency_floats, rows.dim, rows.blocks,
                                panel + f * frequency_floats_, rows_.data(), products + f * t_.tile_rows * t_.pitch,
                                t_.pitch, t_.lanes_of(tile));
        }
        transform_products(products, work.group * t_.outputs + row, std::min(t_.tile_rows, work.last_output - row),
                           tile, lines, state);
      }
    }
  }

  // panel[f][c][t]: each frequency of the inputs of each tile, for one part of a group's channels.
  void transform_inputs(const float* input, const PanelPart& p, float* panel) const {
    const int64_t plane = c_.geometry.plane(), real = c_.weight->channels;
    const int64_t begin = p.part * channels_ / p.parts, end = (p.part + 1) * channels_ / p.parts;
    WinogradRun runs[kMostTilePixels];
    const int64_t num_runs = tiles_.find_runs(p.first, p.count, runs);
    kernels_.input(input + (p.group * real + begin) * plane, plane, runs, num_runs,
                   std::max<int64_t>(std::min(end, real) - begin, 0), p.count, panel + begin * t_.pitch, t_.pitch,
                   frequency_floats_);
    for (int64_t c = std::max(begin, real); c < end; ++c) {
      for (int64_t f = 0; f < matrices_.frequencies(); ++f) {
        std::fill_n(panel + f * frequency_floats_ + c * t_.pitch, t_.pitch, 0.0f);
      }
    }
  }

  void transform_products(const float* products, int64_t output, int64_t rows, int64_t tile, float* lines,
                          const RunState& state) const {
    for (int64_t r = 0; r < rows; ++r) {
      kernels_.output(products + r * t_.pitch, t_.tile_rows * t_.pitch, t_.lanes_of(tile), lines + r * line_floats_,
                      t_.tile_rows * line_floats_);
    }
    tiles_.for_segments(t_.begin(tile), t_.lanes_of(tile), [&](const WinogradTiles::Segment& s) {
      tiles_.for_outputs(s, [&](int64_t line, int64_t first, int64_t pixel, int64_t count) {
        c_.finish(lines + line * t_.tile_rows * line_floats_ + first, line_floats_, output, rows, pixel, count, state);
      });
    });
  }

  Convolution c_;
  const WinogradMatrices& matrices_;
  WinogradTiles tiles_;
  WinogradKernels kernels_;
  Tiling t_;
  int64_t channels_;          // D
  int64_t frequency_floats_;  // of a panel's rows of one frequency
  int64_t line_floats_;
  std::vector<int32_t> rows_;  // where a panel's rows of one frequency begin
  bool reads_codebook_;
  KeptWeights::Values<float> kept_;  // null: decoded in each run, where they are
  AlignedBuffer<uint16_t> at_;
  AlignedBuffer<float> codebook_;  // [F, K, channels of a block]
};

// Whether the weights of a row are whole kernels, one for each channel: blocks are, or rows of them, or single weights.
bool stores_kernels(const Block& block) {
  if (block.columns == 3) return block.rows == 3 || (block.rows == 1 && block.channels == 1);
  return block.dim() == 1;
}

bool winograd_applies(const Convolution& c) {
  return winograd_fits(c.geometry, *c.weight) && stores_kernels(c.weight->block);
}

double cost(const Convolution& c, const Transform& transform, int threads) {
  if (!winograd_applies(c)) return std::numeric_limits<double>::infinity();
  const Tiling t = tiling_of(c, transform.matrices, threads);
  const auto outputs = static_cast<double>(c.weight->outputs);
  const auto inputs = static_cast<double>(c.geometry.channels);
  const double lane_vectors = t.lane_vectors();
  const double kernels = outputs * static_cast<double>(c.weight->depth() / 9);
  const double weights = kernels * kernel_cost(*c.weight) * static_cast<double>(t.num_blocks);
  const double products = static_cast<double>(t.computed_rows() * t.rows) * t.vectors(reads_codebook(*c.weight));
  const double transformed = lane_vectors * (transform.input_cost * inputs + transform.output_cost * outputs);
  return (products + weights + transformed) / threads;
}

template <const Transform& transform>
Path winograd_path(const char* kernel) {
  return {.kernel = kernel,
          .reads = Format::kFloats,
          .cost = [](const Convolution& c, int threads) { return cost(c, transform, threads); },
          .make = [](const Layer& layer, const Convolution& c, const PlanContext& context) -> std::unique_ptr<Step> {
            return std::make_unique<WinogradStep>(layer, c, context, transform.matrices);
          }};
}

}  // namespace

Path winograd2_path() { return winograd_path<kTransform2>("winograd2"); }
Path winograd4_path() { return winograd_path<kTransform4>("winograd4"); }

}  // namespace pyquant
