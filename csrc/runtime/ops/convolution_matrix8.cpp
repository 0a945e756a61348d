// The matrix path in integers: weights are decoded, and multiplied with panels of quads some rows at a time.
#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "runtime/matrix_weights.h"
#include "runtime/ops/byte_panel_step.h"

namespace pyquant {
namespace {

// Of a quad, in vector multiply-adds. So many rows are decoded at once that they leave the first-level cache.
double decode_cost(const Convolution& c, QuadSource source) {
  switch (source) {
    case QuadSource::kCentroid:
      return 1.2 / static_cast<double>(quad_order(*c.weight, source).block.dim());
    case QuadSource::kDecoded:
      return 1.1 * QuadDecoder::cost(*c.weight);
    default:
      return 0.0;
  }
}

// By columns, most rows are read across cache lines, which takes as long as to lay out panels for so many outputs.
constexpr int64_t kFewOutputs = 192;

bool by_columns(const Convolution& c, QuadSource source) {
  if (c.group_outputs() > kFewOutputs) return false;
  return source == QuadSource::kStored || (source == QuadSource::kDecoded && QuadDecoder::come_apart(*c.weight));
}

Panels panels_of(const Convolution& c, int threads) {
  const QuadSource source = quad_source(*c.weight, c.geometry.groups);
  return Panels(in_quads(c.geometry), quad_order(*c.weight, source), *c.kernels, c.kernels->matrix.tile8,
                c.group_outputs(), decode_cost(c, source), threads,
                {.rows = kMatrixWords, .alignment = c.kernels->lanes, .by_columns = by_columns(c, source)});
}

class Matrix8Step : public BytePanelStep {
 public:
  Matrix8Step(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : BytePanelStep(layer, "matrix8", convolution, context, panels_of(convolution, context.threads)),
        source_(quad_source(*convolution.weight, convolution.geometry.groups)),
        weights_(*convolution.weight, source_, panels_.patches, *convolution.kernels,
                 source_ == QuadSource::kCentroid ? b_.take_centroids() : AlignedBuffer<uint32_t>(),
                 source_ == QuadSource::kDecoded ? std::optional(b_.take_decoder(lies_apart())) : std::nullopt),
        steps_(weights_.steps(panels_.row_pitch())) {
    const int64_t outputs = b_.c.weight->outputs;
    if (source_ == QuadSource::kStored) {
      AlignedBuffer<uint32_t> rows(all_rows_size());
      weights_.arrange(b_.take_dense_rows(), outputs, rows.data());
      rows_ = std::make_shared<const AlignedBuffer<uint32_t>>(std::move(rows));
    } else {
      rows_ = context.kept->get<uint32_t>(b_.c.weight, kernel() + (lies_apart() ? " by columns" : ""), all_rows_size(),
                                          [&](uint32_t* rows) { weights_.decode(0, outputs, rows); });
    }
    b_.settle(0, context);
  }

  int64_t scratch_floats() const override {
    return t_.own_panel_floats() + decoded_quads() + sums_quads() + b_.finish_floats(unit_.tile8.pixels);
  }

 private:
  // Whether rows of the kernel do, each with those of all channels.
  bool lies_apart() const { return panels_.patches.runs().size() > 1; }

  int64_t decoded_quads() const { return rows_ != nullptr ? 0 : t_.tile_rows * weights_.pitch(); }
  int64_t sums_quads() const { return t_.tile_rows * unit_.tile8.pixels; }

  // Behind the last row there is memory for a whole tile of them.
  int64_t all_rows_size() const { return round_up(b_.c.weight->outputs, t_.tile_rows) * weights_.pitch(); }

  void multiply(const TiledWork& work, const RunState& state, float* scratch) const override {
    const Panels::Unit unit = panels_.unit(work.group);
    auto* const decoded = reinterpret_cast<uint32_t*>(scratch);
    auto* const sums = reinterpret_cast<int32_t*>(scratch + decoded_quads());
    float* const rest = scratch + decoded_quads() + sums_quads();
    const int64_t pitch = unit_.tile8.pixels;
    unit_.begin();
    for (int64_t row = work.first_output; row < work.last_output; row += t_.tile_rows) {
      const int64_t output = unit.group * t_.outputs + row;
      const int64_t count = std::min(t_.tile_rows, work.last_output - row);
      if (rows_ == nullptr) weights_.decode(output, count, decoded);
      const uint32_t* const rows = rows_ != nullptr ? rows_->data() + output * weights_.pitch() : decoded;
      for (int64_t tile = work.first_tile; tile < work.last_tile; ++tile) {
        b_.expect(output, count, unit.first_pixel + t_.begin(tile), t_.lanes_of(tile), state);
        const auto* const panel = reinterpret_cast<const uint32_t*>(work.panel(t_, tile));
        unit_.multiply8(rows, weights_.pitch(), panel, panels_.row_pitch(), steps_.data(),
                        static_cast<int64_t>(steps_.size()), sums, pitch, count, t_.lanes_of(tile));
        b_.finish(sums, pitch, output, count, unit.first_pixel + t_.begin(tile), t_.lanes_of(tile), epilogue(state),
                  state, rest);
      }
    }
    unit_.end();
  }

  QuadSource source_;
  MatrixWeights weights_;
  std::vector<int32_t> steps_;
  const MatrixKernels& unit_ = b_.c.kernels->matrix;
  KeptWeights::Values<uint32_t> rows_;  // [O, weights_.pitch()]; null: decoded in each run
};

double cost(const Convolution& c, int threads) {
  const MatrixKernels& unit = c.kernels->matrix;
  const QuadSource source = quad_source(*c.weight, c.geometry.groups);
  if (!unit.exists() || source == QuadSource::kNone) return std::numeric_limits<double>::infinity();
  const Panels panels = panels_of(c, threads);
  const Tiling& t = panels.tiling;
  const int64_t quads = matrix_pitch(panels.patches);
  const double multiplied = unit.tile8.step_cost * t.vectors(false);
  const double decoded = decode_cost(c, source) * static_cast<double>(t.num_blocks);
  const auto rows = static_cast<double>(panels.images_apart() * c.weight->outputs);
  return static_cast<double>(quads) * (static_cast<double>(t.computed_rows()) * multiplied + rows * decoded) / threads;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<Matrix8Step>(layer, convolution, context);
}

}  // namespace

Path matrix8_path() { return {.kernel = "matrix8", .reads = Format::kBytes, .cost = &cost, .make = &make}; }

}  // namespace pyquant
