// The Winograd path in integers: F(2x2, 3x3) of bytes, with 2.25 times fewer multiplications.
//
// Frequencies of bytes need ten bits. They are scaled to bytes again, with a scale for each tile and frequency, which
// its products are multiplied with before they are transformed back: the largest of a tile decides how exactly a
// frequency is rounded, and not the largest of all. Frequencies of the codebook are bytes of a scale for each
// frequency.
//
// Inputs behind a ReLU have a mean, with which all that is rounded off a row's weights would be multiplied. Where a
// frequency is the sum of a tile, it is taken from each channel, and multiplied with the sum of the row's weights.
//
// Dimensions: F = 16 frequencies · Q quads of channels of a group · tiles of 2 x 2 outputs are lanes
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "kernels/winograd.h"
#include "runtime/coded_rows.h"
#include "runtime/ops/byte_convolution.h"
#include "runtime/ops/tiling.h"
#include "runtime/ops/winograd_tiles.h"

namespace pyquant {
namespace {

constexpr int64_t kSide = kWinograd8Side;
constexpr int64_t kFrequencies = kSide * kSide;
constexpr float kMostByte = 127;

// Of one vector of tiles, in vector multiply-adds: the inputs of a quad, and the products of an output.
constexpr double kInputCost = 530;
constexpr double kOutputCost = 112;

// For all outputs of a group: that a thread reads a vector of a quad which another one has transformed. Never so little
// that each would rather transform all.
constexpr double kSharedCost = 15;
constexpr double kLeastSharedCost = 0.06;

// A tile of fewer vectors takes as long: sums of one frequency are too few to hide how long each takes.
constexpr double kLeastVectors = 2;

// Where products are added in pairs, weights must be smaller than those of frequencies are. And tiles that have no
// neighbour are mostly padding, by which all of their frequencies have a mean.
bool applies(const Convolution& c) {
  const Weight& weight = *c.weight;
  if (std::min(c.geometry.out_height, c.geometry.out_width) <= kWinograd2x2.outputs) return false;
  if (c.kernels->adds_in_pairs || !winograd_fits(c.geometry, weight) || !has_joint_codebook(weight)) return false;
  // Outputs are rounded to ints, and may be a little larger than the sums are that others compute.
  if (2 * weight.depth() * 128 * kMostInput > INT32_MAX) return false;
  const Block& block = weight.block;
  return block.rows == 3 && block.columns == 3 && block.channels <= 2 &&
         quad_source(weight, c.geometry.groups) == QuadSource::kDecoded;
}

// A weight with the codes of another one, of kernels 3 x 3, whose codebooks are the frequencies of that one's.
Weight transformed(const Weight& weight) {
  Weight result;
  result.channels = weight.channels;
  result.kernel_rows = result.kernel_columns = kSide;
  result.block = {.channels = weight.block.channels, .rows = kSide, .columns = kSide};
  result.outputs = weight.outputs;
  result.codebooks = weight.codebooks;
  result.centroids = weight.centroids;
  result.codes = AlignedBuffer<uint16_t>(weight.codes.size());
  std::copy_n(weight.codes.data(), weight.codes.size(), result.codes.data());
  result.codebook = AlignedBuffer<float>(weight.codebook.size() / 9 * kFrequencies);
  for (int64_t i = 0; i < result.codebook.size(); ++i) {
    const float* const kernel = weight.codebook.data() + i / kFrequencies * 9;
    result.codebook[i] = static_cast<float>(kWinograd2x2.frequency(i % kFrequencies, kernel));
  }
  return result;
}

// Of a quad of one frequency, in vector multiply-adds: codes and centroids are found once for a kernel, as for its nine
// weights elsewhere.
double decode_cost(const Convolution& c) { return QuadDecoder::cost(*c.weight) * 9 / kFrequencies; }

Tiling tiling_of(const Convolution& c, int threads) {
  const int64_t tiles = WinogradTiles{c.geometry, kWinograd2x2.outputs}.count();
  const int64_t quads = ceil_div(c.weight->channels, kQuad);
  const double shared = std::max(kSharedCost / static_cast<double>(c.group_outputs()), kLeastSharedCost);
  const SideCosts costs{.decode = decode_cost(c), .repeat = shared};
  return Tiling(*c.kernels, c.kernels->tile8, c.geometry.groups, c.group_outputs(), tiles,
                kFrequencies * (quads + 1) + 1, threads, costs);
}

class Winograd8Step : public Step {
 public:
  Winograd8Step(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "winograd8"),
        b_(convolution, context),
        geometry_(in_quads(convolution.geometry)),
        tiles_{geometry_, kWinograd2x2.outputs},
        t_(tiling_of(convolution, context.threads)),
        quads_(geometry_.channels / geometry_.groups),
        line_pitch_(tiles_.m * t_.pitch),
        rows_(rows_apart(quads_, t_.pitch)) {
    for (int64_t y = 0; y < kSide; ++y) begin_.push_back(static_cast<int32_t>(y * matrix_quads()));
    take_codebook();
    b_.settle(0, context);
    kept_ = context.kept->get<uint32_t>(b_.c.weight, kernel() + " of " + std::to_string(t_.groups),
                                        t_.groups * t_.row_tiles() * weights_quads(), [&](uint32_t* weights) {
                                          for_row_tiles([&](int64_t tile, int64_t output, int64_t count) {
                                            decode(output, count, weights + tile * weights_quads());
                                          });
                                        });
    take_start();
  }

  int64_t scratch_floats() const override {
    const int64_t inputs = quads_ * kWinograd8Columns * b_.c.kernels->lanes8;
    const int64_t outputs =
        weights_quads() + product_ints() + tiles_.m * t_.tile_rows * line_pitch_ + b_.finish_floats(line_pitch_);
    return t_.own_panel_floats() + std::max(inputs, outputs);
  }

  int64_t shared_floats() const override { return t_.shared_floats() + b_.epilogue_floats(); }

  void run(const RunState& state) const override {
    b_.write_epilogue(state, epilogue(state));
    run_tiled(
        t_, state,
        [&](const PanelPart& part, float* panel, float* scratch) { transform_inputs(part, state, panel, scratch); },
        [&](const TiledWork& work, float* scratch) { multiply(work, state, scratch); });
  }

 private:
  // The weights of a row tile, and those that belong to one frequency of y: [4, tile_rows, Q, 4].
  int64_t weights_quads() const { return kSide * matrix_quads(); }
  int64_t matrix_quads() const { return t_.tile_rows * quads_ * kSide; }
  int64_t start_ints() const { return kFrequencies * t_.tile_rows; }
  int64_t product_ints() const { return start_ints() * b_.c.kernels->winograd8.product_pitch; }
  int64_t frequency_quads() const { return (quads_ + 1) * t_.pitch; }  // of a panel
  float* epilogue(const RunState& state) const { return state.shared + t_.shared_floats(); }

  void take_codebook() {
    const Weight frequencies = transformed(*b_.c.weight);
    AlignedBuffer<float> codebook = joint_codebook(frequencies, frequencies.codebook);
    // Sums are in steps of what is the scale of bytes on other paths.
    const float scale = joint_byte_codebook(*b_.c.weight).scale;
    take_sums(frequencies, codebook, scale);
    for (int64_t f = 0; f < kFrequencies; ++f) {
      const float of_frequency = round_to_bytes(codebook.data() + f, codebook.size() - f, kFrequencies);
      // Scales have the signs of what the last row and the last column of outputs subtract.
      const bool is_subtracted = (f / kSide == kSide - 1) != (f % kSide == kSide - 1);
      units_[f] = (is_subtracted ? -of_frequency : of_frequency) / scale / kMostByte;
    }
    decoder_.emplace(frequencies, codebook, true);
    b_.weight_scale.assign(b_.c.weight->outputs, scale);
    b_.weight_sums.assign(b_.c.weight->outputs, 0);  // the zero is taken from each input
  }

  void take_start() {
    start_.assign(t_.groups * t_.row_tiles() * start_ints(), 0);
    AlignedBuffer<uint32_t> decoded(weights_quads());
    for_row_tiles([&](int64_t tile, int64_t output, int64_t count) {
      const uint32_t* const weights = weights_of(tile, output, count, decoded.data());
      for (int64_t i = 0; i < kSide * count; ++i) {
        const int64_t y = i / count, row = i % count;
        const uint32_t* const quads = weights + begin_[y] + row * quads_ * kSide;
        int32_t* const start = &start_[tile * start_ints() + y * kSide * t_.tile_rows + row];
        for (int64_t q = 0; q < quads_ * kSide; ++q) {
          for (int64_t byte = 0; byte < kQuad; ++byte) {
            start[q % kSide * t_.tile_rows] -= 128 * static_cast<int8_t>(quads[q] >> (8 * byte));
          }
        }
      }
    });
  }

  // What the mean of all channels is multiplied with, in steps of a scale, by the joint codebook before it is rounded.
  void take_sums(const Weight& frequencies, const AlignedBuffer<float>& codebook, float scale) {
    const AlignedBuffer<uint16_t> codes = joint_codes(frequencies, 1, 1, 1);
    const int64_t blocks = frequencies.blocks_per_row(), channels = frequencies.block.channels;
    for (int64_t o = 0; o < frequencies.outputs; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < blocks * channels; ++i) {
        const int64_t centroid = codes[o * blocks + i / channels];
        sum += codebook[(centroid * channels + i % channels) * kFrequencies + kWinograd8Mean];
      }
      sums_.push_back(static_cast<float>(sum / scale));
    }
  }

  // Call body(tile, output, count) for all row tiles: their first output, and how many they have.
  template <typename Body>
  void for_row_tiles(const Body& body) const {
    for (int64_t tile = 0; tile < t_.groups * t_.row_tiles(); ++tile) {
      const int64_t row = tile % t_.row_tiles() * t_.tile_rows;
      body(tile, tile / t_.row_tiles() * t_.outputs + row, std::min(t_.tile_rows, t_.outputs - row));
    }
  }

  void decode(int64_t output, int64_t count, uint32_t* weights) const {
    decoder_->decode(*b_.c.kernels, output, count, begin_.data(), weights, quads_ * kSide);
  }

  // Those of a row tile, which are decoded unless they are kept.
  const uint32_t* weights_of(int64_t row_tile, int64_t output, int64_t count, uint32_t* decoded) const {
    if (kept_ != nullptr) return kept_->data() + row_tile * weights_quads();
    decode(output, count, decoded);
    return decoded;
  }

  // panel[f][c][t], c < Q, and behind each frequency its scales[t]; behind all of them the means[t]. Threads that share
  // a panel take vectors of its lanes.
  void transform_inputs(const PanelPart& p, const RunState& state, float* panel, float* scratch) const {
    const Quantization in = state.quantization[b_.c.input];
    const int64_t lanes = b_.c.kernels->lanes8, vectors = ceil_div(p.count, lanes);
    const uint32_t* const input = state.quads(b_.c.input) + p.group * quads_ * geometry_.plane();
    WinogradRun runs[kMostTilePixels];
    for (int64_t v = p.part * vectors / p.parts; v < (p.part + 1) * vectors / p.parts; ++v) {
      const int64_t first = v * lanes;
      const int64_t num_runs = tiles_.find_runs(p.first + first, std::min(lanes, p.count - first), runs);
      b_.c.kernels->winograd8.input(input, geometry_.plane(), runs, num_runs, quads_, static_cast<uint8_t>(in.zero),
                                    units_, reinterpret_cast<uint32_t*>(scratch),
                                    reinterpret_cast<uint32_t*>(panel) + first, t_.pitch, frequency_quads(),
                                    scales_of(panel) + first, mean_of(panel) + first);
    }
  }

  template <typename Float>
  Float* scales_of(Float* panel) const {
    return panel + quads_ * t_.pitch;
  }

  template <typename Float>
  Float* mean_of(Float* panel) const {
    return panel + kFrequencies * frequency_quads();
  }

  void multiply(const TiledWork& work, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *b_.c.kernels;
    auto* const decoded = reinterpret_cast<uint32_t*>(scratch);
    auto* const products = reinterpret_cast<int32_t*>(scratch + weights_quads());
    int32_t* const lines = products + product_ints();
    float* const rest = reinterpret_cast<float*>(lines + tiles_.m * t_.tile_rows * line_pitch_);
    const int64_t line_step = t_.tile_rows * line_pitch_;
    for (int64_t row = work.first_output; row < work.last_output; row += t_.tile_rows) {
      const int64_t output = work.group * t_.outputs + row, count = std::min(t_.tile_rows, work.last_output - row);
      const int64_t row_tile = work.group * t_.row_tiles() + row / t_.tile_rows;
      const uint32_t* const weights = weights_of(row_tile, output, count, decoded);
      for (int64_t tile = work.first_tile; tile < work.last_tile; ++tile) {
        const float* const panel = work.panel(t_, tile);
        const auto* const inputs = reinterpret_cast<const uint32_t*>(panel);
        const int64_t lanes = t_.lanes_of(tile);
        kernels.winograd8.multiply(weights, start_.data() + row_tile * start_ints(), quads_, inputs, frequency_quads(),
                                   rows_.data(), products, lanes);
        kernels.winograd8.output(products, scales_of(panel), frequency_quads(), mean_of(panel), sums_.data() + output,
                                 count, lanes, lines, line_pitch_);
        tiles_.for_segments(t_.begin(tile), lanes, [&](const WinogradTiles::Segment& s) {
          tiles_.for_outputs(s, [&](int64_t line, int64_t first, int64_t pixel, int64_t pixels) {
            b_.finish(lines + line * line_step + first, line_pitch_, output, count, pixel, pixels, epilogue(state),
                      state, rest);
          });
        });
      }
    }
  }

  ByteConvolution b_;
  ConvGeometry geometry_;  // in quads
  WinogradTiles tiles_;
  Tiling t_;
  int64_t quads_;  // Q
  int64_t line_pitch_;
  std::vector<int32_t> rows_;   // where a panel's rows of one frequency begin
  std::vector<int32_t> begin_;  // where those of each frequency of y do
  std::optional<QuadDecoder> decoder_;
  float units_[kFrequencies];
  KeptWeights::Values<uint32_t> kept_;  // [row tiles, weights_quads()]; null: decoded in each run
  std::vector<float> sums_;             // [O]: of all weights at the frequency that has the mean
  std::vector<int32_t> start_;  // [row tiles, F, tile_rows]: what 128 in place of 0 adds to products, taken from them
};

double cost(const Convolution& c, int threads) {
  if (!applies(c)) return std::numeric_limits<double>::infinity();
  const Tiling t = tiling_of(c, threads);
  const auto outputs = static_cast<double>(c.weight->outputs), tiles = static_cast<double>(t.num_tiles);
  const auto quads = static_cast<double>(ceil_div(c.weight->channels, kQuad));
  const double decoded = decode_cost(c) * static_cast<double>(t.num_blocks);
  const double multiplied = c.kernels->tile8.step_cost * std::max(t.lane_vectors(), kLeastVectors * tiles);
  const double products = static_cast<double>(t.computed_rows()) * kFrequencies * quads * (multiplied + decoded);
  // No two threads transform inputs of one vector.
  const double inputs = kInputCost * quads * std::ceil(t.lane_vectors() * static_cast<double>(t.groups) / threads);
  return inputs + (products + t.lane_vectors() * kOutputCost * outputs) / threads;
}

std::unique_ptr<Step> make(const Layer& layer, const Convolution& convolution, const PlanContext& context) {
  return std::make_unique<Winograd8Step>(layer, convolution, context);
}

}  // namespace

Path winograd8_path() { return {.kernel = "winograd8", .reads = Format::kBytes, .cost = &cost, .make = &make}; }

}  // namespace pyquant
