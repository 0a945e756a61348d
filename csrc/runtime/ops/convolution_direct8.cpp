// The direct path in integers: panels of quads are multiplied with quads of weights, a few outputs at a time.
//
// Where a quad is part of a centroid, weights are read from the codebook by way of their codes. Where it is made of
// several, the rows of a tile are decoded first, unless memory is granted to keep them.
//
// Where a kernel cannot multiply the largest weights, it multiplies what is near, and the rest follows: quad_rests.h.
#include <algorithm>
#include <limits>
#include <optional>

#include "runtime/coded_rows.h"
#include "runtime/ops/byte_panel_step.h"
#include "runtime/quad_rests.h"

namespace pyquant {
namespace {

double decode_cost(const Convolution& c, QuadSource source) {
  return source == QuadSource::kDecoded ? QuadDecoder::cost(*c.weight) : 0.0;
}

// Pixels behind the last whole vector: of so few, each is multiplied with weights as they lie, whose lanes are inputs.
// That is for weights that are not read by codes.
constexpr int64_t kMostLeft = 4;
constexpr double kLeftCost = 2;  // of a vector of a row, in multiply-adds of a tile

Panels panels_of(const Convolution& c, int threads) {
  const QuadSource source = quad_source(*c.weight, c.geometry.groups);
  const bool has_rows = source != QuadSource::kCentroid && c.kernels->dots_rows;
  return Panels(in_quads(c.geometry), quad_order(*c.weight, source), *c.kernels, c.kernels->tile8, c.group_outputs(),
                decode_cost(c, source), threads, {.most_left = has_rows ? kMostLeft : 0});
}

class Direct8Step : public BytePanelStep {
 public:
  Direct8Step(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : BytePanelStep(layer, "direct8", convolution, context, panels_of(convolution, context.threads)),
        source_(quad_source(*convolution.weight, convolution.geometry.groups)),
        order_(quad_order(*convolution.weight, source_)) {
    const Weight& weight = *b_.c.weight;
    if (source_ == QuadSource::kStored) {
      quads_ = b_.take_dense_rows();
    } else if (source_ == QuadSource::kCentroid) {
      quads_ = b_.take_centroids();
      at_ = joint_codes(weight, b_.c.geometry.groups, t_.tile_rows, order_.block.dim());
    } else {
      decoder_ = b_.take_decoder();
    }
    b_.settle(0, context);
    if (panels_.left > 0) pixel_inputs_.emplace(in_quads(b_.c.geometry), order_, b_.c.kernels);
    if (b_.c.kernels->adds_in_pairs) leave_rests();
    if (source_ == QuadSource::kCentroid) panels_.vary_steps(order_.block.dim(), at_);
    if (source_ == QuadSource::kDecoded) {
      kept_ = context.kept->get<uint32_t>(b_.c.weight, kernel(), weight.outputs * order_.depth(),
                                          [&](uint32_t* rows) { decode(0, weight.outputs, rows); });
    }
  }

  int64_t scratch_floats() const override {
    return t_.own_panel_floats() + decoded_quads() + sums_quads() + left_quads() + b_.finish_floats(sums_pitch());
  }

 private:
  // The weights of a tile of output rows, as gemm_tile8 takes them.
  struct Rows {
    const uint16_t* at;
    const uint32_t* codebook;
    int64_t dim;
    int64_t blocks;
  };

  // Of the rows of a tile that are not read where they lie.
  int64_t decoded_quads() const {
    if (source_ == QuadSource::kCentroid) return 0;
    return round_up(t_.tile_rows * order_.depth(), 16);
  }
  int64_t sums_pitch() const { return rests_.empty() ? b_.c.kernels->tile8.pixels : kSparsePixels; }
  int64_t sums_quads() const { return t_.tile_rows * sums_pitch(); }
  int64_t left_quads() const { return round_up(panels_.left * order_.depth(), 16); }

  // Make all quads fit, and keep what is left of them.
  void leave_rests() {
    const bool all_fit =
        source_ != QuadSource::kDecoded && std::all_of(quads_.data(), quads_.data() + quads_.size(), &fits);
    if (all_fit) return;
    const int64_t depth = order_.depth(), dim = order_.block.dim(), blocks = order_.blocks_per_row();
    AlignedBuffer<uint16_t> codes;
    if (source_ == QuadSource::kCentroid) codes = joint_codes(*b_.c.weight, 1, 1, 1);
    rests_ = QuadRests(b_.c.weight->outputs, panels_.rows, [&](int64_t o, uint32_t* quads) {
      if (source_ == QuadSource::kDecoded) return decode(o, 1, quads);
      if (source_ == QuadSource::kStored) {
        std::copy_n(quads_.data() + o * depth, depth, quads);
        return;
      }
      for (int64_t j = 0; j < blocks; ++j) {
        std::copy_n(quads_.data() + codes[o * blocks + j] * dim, dim, quads + j * dim);
      }
    });
    std::transform(quads_.data(), quads_.data() + quads_.size(), quads_.data(), &fitting_quad);
  }

  void multiply(const TiledWork& work, const RunState& state, float* scratch) const override {
    const KernelTable& kernels = *b_.c.kernels;
    const Panels::Unit unit = panels_.unit(work.group);
    auto* const decoded = reinterpret_cast<uint32_t*>(scratch);
    auto* const sums = reinterpret_cast<int32_t*>(scratch + decoded_quads());
    float* const inputs = scratch + decoded_quads() + sums_quads();
    float* const rest = inputs + left_quads();
    const int64_t depth = order_.depth();
    const bool is_last = work.last_tile == t_.num_tiles;
    if (is_last) lay_out_left(unit, state, inputs);
    for (int64_t row = work.first_output; row < work.last_output; row += t_.tile_rows) {
      const int64_t output = unit.group * t_.outputs + row;
      const int64_t count = std::min(t_.tile_rows, work.last_output - row);
      const Rows rows = rows_from(output, count, decoded);
      for (int64_t tile = work.first_tile; tile < work.last_tile; ++tile) {
        const auto* const panel = reinterpret_cast<const uint32_t*>(work.panel(t_, tile));
        const int64_t pixels = t_.lanes_of(tile);
        kernels.gemm_tile8(rows.at, rows.codebook, rows.dim, rows.blocks, panel, panels_.rows.data(), sums,
                           sums_pitch(), pixels);
        rests_.add(kernels, output, count, panel, sums, pixels);
        b_.finish(sums, sums_pitch(), output, count, unit.first_pixel + t_.begin(tile), pixels, epilogue(state), state,
                  rest);
      }
      if (is_last && panels_.left > 0) {
        const auto* const quads = reinterpret_cast<const uint32_t*>(inputs);
        for (int64_t i = 0; i < panels_.left; ++i) {
          kernels.dot_rows8(rows.codebook, depth, quads + i * depth, depth, sums + i, sums_pitch(), count);
        }
        b_.finish(sums, sums_pitch(), output, count, unit.first_pixel + t_.count, panels_.left, epilogue(state), state,
                  rest);
      }
    }
  }

  // The inputs [left, depth] of the pixels of a unit that are not tiled.
  void lay_out_left(const Panels::Unit& unit, const RunState& state, float* inputs) const {
    const uint32_t outside = state.quantization[b_.c.input].zeros();
    for (int64_t i = 0; i < panels_.left; ++i) {
      pixel_inputs_->pack(state.values[b_.c.input], unit.group, unit.first_pixel + t_.count + i, 1, 1, outside,
                          inputs + i * order_.depth());
    }
  }

  // The weights of `count` outputs from `output` on, the first of a row tile; decoded where they must be.
  Rows rows_from(int64_t output, int64_t count, uint32_t* decoded) const {
    const int64_t depth = order_.depth();
    if (source_ == QuadSource::kCentroid) {
      const int64_t blocks = order_.blocks_per_row();
      const int64_t tile = output / t_.outputs * t_.row_tiles() + output % t_.outputs / t_.tile_rows;
      return {.at = at_.data() + tile * blocks * t_.tile_rows,
              .codebook = quads_.data(),
              .dim = order_.block.dim(),
              .blocks = blocks};
    }
    const uint32_t* rows = decoded;
    const AlignedBuffer<uint32_t>* const whole = source_ == QuadSource::kStored ? &quads_ : kept_.get();
    if (whole == nullptr) {
      decode(output, count, decoded);
    } else if (count == t_.tile_rows) {
      rows = whole->data() + output * depth;
    } else {  // gemm_tile8 reads all rows of a tile, also where there are fewer
      std::copy_n(whole->data() + output * depth, count * depth, decoded);
    }
    return {.at = nullptr, .codebook = rows, .dim = depth, .blocks = 1};
  }

  void decode(int64_t output, int64_t count, uint32_t* rows) const {
    decoder_->decode(*b_.c.kernels, output, count, &QuadDecoder::kTogether, rows, order_.depth());
    rests_.fit(output, count, rows, order_.depth());
  }

  QuadSource source_;
  WeightOrder order_;
  std::optional<Patches> pixel_inputs_;  // of pixels that are not tiled; empty where there are none
  AlignedBuffer<uint32_t> quads_;        // of a dense weight's rows, or of a codebook
  AlignedBuffer<uint16_t> at_;           // of centroids: where those of the rows of a tile begin
  std::optional<QuadDecoder> decoder_;   // what is decoded
  KeptWeights::Values<uint32_t> kept_;   // of it; null: in each run
  QuadRests rests_;
};

double cost(const Convolution& c, int threads) {
  const QuadSource source = quad_source(*c.weight, c.geometry.groups);
  if (source == QuadSource::kNone) return std::numeric_limits<double>::infinity();
  const WeightOrder order = quad_order(*c.weight, source);
  const Panels panels = panels_of(c, threads);
  const Tiling& t = panels.tiling;
  const double decoded = decode_cost(c, source) * static_cast<double>(t.num_blocks);
  const auto quads = static_cast<double>(t.computed_rows() * order.depth());
  const double left = kLeftCost * static_cast<double>(panels.left) / static_cast<double>(c.kernels->lanes);
  const double multiplied = c.kernels->tile8.step_cost * (t.vectors(source == QuadSource::kCentroid) + left);
  return quads * (multiplied + decoded) / threads;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<Direct8Step>(layer, convolution, context);
}

}  // namespace

Path direct8_path() { return {.kernel = "direct8", .reads = Format::kBytes, .cost = &cost, .make = &make}; }

}  // namespace pyquant
