// The matrix path: weights and inputs are split into short numbers, whose products are added up to what fp32 has.
//
// Weights are decoded a few outputs at a time: from codebooks that are split beforehand, or from bytes, which are short
// numbers as they are. Inputs are split tile by tile.
#include <algorithm>
#include <limits>
#include <utility>

#include "runtime/coded_rows.h"
#include "runtime/ops/convolution.h"
#include "runtime/ops/panels.h"

namespace pyquant {
namespace {

// In vector multiply-adds: to decode a pair of weights, and to split a vector of inputs.
constexpr double kDecodeCost = 1.0;
constexpr double kSplitCost = 10.0;

// Of weights in one piece, relative to others.
constexpr double kOnePieceCost = 0.6;

// Pairs of weights are neighbours in a centroid or a row. Whole kernels gain nothing: nine times the inputs are split,
// whose pieces leave no room in the second-level cache for more than a tile, so that weights are decoded for each.
bool applies(const Convolution& c) {
  const Weight& weight = *c.weight;
  if (!c.kernels->matrix.exists() || weight.block.rows * weight.block.columns != 1) return false;
  if (!weight.bytes.empty()) return weight.channels % 2 == 0;
  return has_joint_codebook(weight) && weight.block.channels % 2 == 0;
}

Panels panels_of(const Convolution& c, int threads) {
  return Panels(c.geometry, *c.weight, *c.kernels, c.kernels->matrix.tile, c.group_outputs(), kDecodeCost / 2, threads,
                {.rows = kMatrixWords, .by_columns = false, .in_pieces = true});
}

class MatrixStep : public Step {
 public:
  MatrixStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "matrix"), c_(convolution), panels_(panels_of(convolution, context.threads)) {
    const Weight& weight = *c_.weight;
    if (!weight.bytes.empty()) {
      weight_pieces_ = 1;
      for (int64_t o = 0; o < weight.outputs; ++o) c_.scale[o] *= weight.units[o];
      return;
    }
    blocks_ = weight.blocks_per_row();
    dim_ = weight.block.dim() / 2;
    split_codebook(joint_codebook(weight, weight.codebook));
    codes_ = joint_codes(weight, 1, 1, dim_);
  }

  int64_t scratch_floats() const override {
    return t_.own_panel_floats() + std::max(unfolded_floats(), weight_pieces_ * weights_piece() + sums_floats());
  }

  int64_t shared_floats() const override { return t_.shared_floats(); }

  void run(const RunState& state) const override {
    const float* const input = state.values[c_.input];
    run_tiled(
        t_, state, [&](const PanelPart& part, float* panel, float* scratch) { prepare(part, input, panel, scratch); },
        [&](const TiledWork& work, float* scratch) { multiply(work, state, scratch); });
  }

 private:
  // Pairs of rows of a panel's piece, and those that are there to be multiplied with nothing.
  int64_t pairs() const { return c_.weight->depth() / 2; }
  int64_t padded_pairs() const { return round_up(pairs(), kMatrixWords); }

  int64_t weights_piece() const { return t_.tile_rows * padded_pairs(); }
  int64_t sums_floats() const { return t_.tile_rows * unit_.tile.pixels; }
  int64_t unfolded_floats() const { return round_up(c_.weight->depth() * t_.pitch + kSlackBytes / 4, 16); }

  // The pieces [kPieces, codebook_piece_] of centroids [K, 2 * dim_], each of which is pairs [K, dim_].
  void split_codebook(const AlignedBuffer<float>& codebook) {
    codebook_piece_ = round_up(codebook.size() / 2, c_.kernels->lanes);
    AlignedBuffer<float> halves(2 * codebook_piece_);
    std::fill_n(halves.data(), halves.size(), 0.0f);
    for (int64_t i = 0; i < codebook.size() / 2; ++i) {
      halves[i] = codebook[2 * i];
      halves[codebook_piece_ + i] = codebook[2 * i + 1];
    }
    AlignedBuffer<uint32_t> pieces(kPieces * codebook_piece_);
    unit_.split(halves.data(), codebook_piece_, 2, codebook_piece_, pieces.data(), codebook_piece_, codebook_piece_);
    const uint32_t* const last = pieces.data() + 2 * codebook_piece_;
    const bool all_zero =
        std::all_of(last, last + codebook_piece_, [](uint32_t pair) { return (pair & 0x7fff7fff) == 0; });
    weight_pieces_ = all_zero ? 2 : kPieces;
    codebook_ = std::move(pieces);
  }

  void prepare(const PanelPart& part, const float* input, float* panel, float* scratch) const {
    const int64_t begin = part.part * pairs() / part.parts, end = (part.part + 1) * pairs() / part.parts;
    const float* rows = scratch;
    int64_t pitch = t_.pitch;
    if (panels_.are_input()) {
      rows = input + part.group * panels_.patches.rows() * panels_.plane + part.first;
      pitch = panels_.plane;
    } else {
      panels_.patches.pack(input, part.group, part.first, part.count, pitch, 0, scratch);
    }
    auto* const words = reinterpret_cast<uint32_t*>(panel);
    const int64_t piece = padded_pairs() * t_.pitch;
    unit_.split(rows + 2 * begin * pitch, pitch, 2 * (end - begin), part.count, words + begin * t_.pitch, t_.pitch,
                piece);
    if (end < pairs()) return;
    for (int64_t i = 0; i < kPieces; ++i) {
      std::fill(words + i * piece + end * t_.pitch, words + (i + 1) * piece, 0u);
    }
  }

  void multiply(const TiledWork& work, const RunState& state, float* scratch) const {
    const Panels::Unit unit = panels_.unit(work.group);
    auto* const decoded = reinterpret_cast<uint32_t*>(scratch);
    float* const sums = scratch + weight_pieces_ * weights_piece();
    const int64_t pitch = unit_.tile.pixels;
    unit_.begin();
    for (int64_t row = work.first_output; row < work.last_output; row += t_.tile_rows) {
      const int64_t output = unit.group * t_.outputs + row;
      const int64_t count = std::min(t_.tile_rows, work.last_output - row);
      decode(output, count, decoded);
      for (int64_t tile = work.first_tile; tile < work.last_tile; ++tile) {
        c_.expect(output, count, unit.first_pixel + t_.begin(tile), t_.lanes_of(tile), state);
        unit_.multiply(decoded, padded_pairs(), weights_piece(), weight_pieces_,
                       reinterpret_cast<const uint32_t*>(work.panel(t_, tile)), t_.pitch, padded_pairs() * t_.pitch,
                       padded_pairs() / kMatrixWords, sums, pitch, count, t_.lanes_of(tile));
        c_.finish(sums, pitch, output, count, unit.first_pixel + t_.begin(tile), t_.lanes_of(tile), state);
      }
    }
    unit_.end();
  }

  void decode(int64_t output, int64_t count, uint32_t* rows) const {
    const Weight& weight = *c_.weight;
    const int64_t pitch = padded_pairs();
    for (int64_t i = 0; i < weight_pieces_; ++i, rows += weights_piece()) {
      if (weight.has_codes()) {
        unit_.decode_words(codes_.data() + output * blocks_, blocks_, codebook_.data() + i * codebook_piece_, dim_,
                           rows, pitch, count, blocks_);
      } else {
        const int8_t* const bytes = weight.bytes.data() + output * weight.depth();
        for (int64_t r = 0; r < count; ++r) unit_.decode_pairs(bytes + r * weight.depth(), rows + r * pitch, pairs());
      }
      for (int64_t r = 0; r < count; ++r) std::fill(rows + r * pitch + pairs(), rows + (r + 1) * pitch, 0u);
    }
  }

  Convolution c_;
  Panels panels_;
  const Tiling& t_ = panels_.tiling;
  const MatrixKernels& unit_ = c_.kernels->matrix;
  int64_t weight_pieces_ = kPieces;
  // Of weights with codes:
  int64_t blocks_ = 0;
  int64_t dim_ = 0;  // pairs of a block
  int64_t codebook_piece_ = 0;
  AlignedBuffer<uint32_t> codebook_;
  AlignedBuffer<uint16_t> codes_;
};

double cost(const Convolution& c, int threads) {
  if (!applies(c)) return std::numeric_limits<double>::infinity();
  const Panels panels = panels_of(c, threads);
  const Tiling& t = panels.tiling;
  const auto depth = static_cast<double>(round_up(c.weight->depth(), 2 * kMatrixWords));
  const double pieces = c.weight->has_codes() ? 1.0 : kOnePieceCost;
  const double multiplied = pieces * c.kernels->matrix.tile.step_cost * t.vectors(false);
  const double decoded = kDecodeCost / 2 * static_cast<double>(t.num_blocks);
  const double split = kSplitCost * t.lane_vectors() * static_cast<double>(c.geometry.groups);
  const auto images = static_cast<double>(panels.images_apart());
  const double products = static_cast<double>(t.computed_rows()) * multiplied;
  return depth * (products + images * (static_cast<double>(c.weight->outputs) * decoded + split)) / threads;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<MatrixStep>(layer, convolution, context);
}

}  // namespace

Path matrix_path() { return {.kernel = "matrix", .reads = Format::kFloats, .cost = &cost, .make = &make}; }

}  // namespace pyquant
