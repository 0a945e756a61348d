// The Winograd path: 3x3 convolutions by F(2x2, 3x3), 2.25 times fewer multiplications (Lavin and Gray, 2016).
//
// Inputs of a tile of 2x2 outputs are transformed into 16 frequencies, each a matrix product over channels, and the
// products back into outputs. The transform of weights is linear, so that only the codebook is transformed: the codes
// name transformed centroids just as well.
//
// Dimensions: D channels of a group, tail blocks padded · F = 16 frequencies · tiles are lanes
#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/coded_rows.h"
#include "runtime/ops/convolution.h"

namespace pyquant {
namespace {

constexpr int64_t kFrequencies = 16;

// Both transforms, in vector multiply-adds per vector of tiles: of one channel's inputs, and of one output.
constexpr double kInputCost = 130;
constexpr double kOutputCost = 130;

int64_t tile_rows_of(const ConvGeometry& g) { return ceil_div(g.out_height, 2); }
int64_t tile_columns_of(const ConvGeometry& g) { return ceil_div(g.out_width, 2); }

Tiling tile(const Convolution& c, int threads) {
  const int64_t tiles = c.geometry.images * tile_rows_of(c.geometry) * tile_columns_of(c.geometry);
  const int64_t channels = c.weight->blocks_per_row() * c.weight->block.channels;
  return Tiling(c, tiles, kFrequencies * channels * static_cast<int64_t>(sizeof(float)), threads);
}

// centroids[f][k][c] = (G g Gt)[f / 4][f % 4] of the 3x3 kernel g of channel c of centroid k.
AlignedBuffer<float> transformed(const AlignedBuffer<float>& codebook) {
  constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  const int64_t kernels = codebook.size() / 9;
  AlignedBuffer<float> result(kFrequencies * kernels);
  for (int64_t f = 0; f < kFrequencies; ++f) {
    for (int64_t kernel = 0; kernel < kernels; ++kernel) {
      double sum = 0;
      for (int64_t y = 0; y < 3; ++y) {
        for (int64_t x = 0; x < 3; ++x) sum += kG[f / 4][y] * kG[f % 4][x] * codebook[kernel * 9 + y * 3 + x];
      }
      result[f * kernels + kernel] = static_cast<float>(sum);
    }
  }
  return result;
}

class WinogradStep : public Step {
 public:
  WinogradStep(const Layer& layer, const Convolution& convolution, const PlanContext& context)
      : Step(layer.node->name, layer.op, "winograd"),
        c_(convolution),
        t_(tile(convolution, context.threads)),
        row_tiles_(ceil_div(t_.group_outputs, t_.tile_rows)),
        blocks_(c_.weight->blocks_per_row()),
        channels_(blocks_ * c_.weight->block.channels),
        codes_(joint_codes(*c_.weight, t_.groups, t_.tile_rows)),
        codebook_(transformed(joint_codebook(*c_.weight))) {
    const int64_t lanes = c_.kernels->lanes;
    frequency_floats_ = round_up(channels_ * t_.pitch + lanes, 16);
    line_floats_ = 2 * t_.pitch + 4 * lanes;
  }

  int64_t scratch_floats() const override {
    return t_.tiles_per_block * kFrequencies * frequency_floats_ + kFrequencies * t_.tile_rows * t_.pitch +
           line_floats_ * std::max<int64_t>(4, 2 * t_.tile_rows);
  }

  void run(const RunState& state) const override {
    state.pool->parallel_for(t_.units(), [&](int64_t index, int worker) {
      run_unit(t_.unit(index), state, state.scratch[worker]);
    });
  }

 private:
  // Tiles of one tile's lanes that lie side by side in one image.
  struct Segment {
    int64_t at;    // in the lanes
    int64_t size;  // tiles
    int64_t image;
    int64_t y, x;  // their first output
  };

  template <typename Body>
  void for_segments(int64_t tile, const Body& body) const {
    const int64_t columns = tile_columns_of(c_.geometry);
    const int64_t plane = columns * tile_rows_of(c_.geometry);
    const int64_t count = t_.lanes_of(tile);
    for (int64_t at = 0; at < count;) {
      const int64_t index = tile * t_.tile_lanes + at;
      const int64_t column = index % columns;
      const int64_t size = std::min(columns - column, count - at);
      body(Segment{.at = at,
                   .size = size,
                   .image = index / plane,
                   .y = index % plane / columns * 2,
                   .x = column * 2});
      at += size;
    }
  }

  void run_unit(const Tiling::Unit& unit, const RunState& state, float* scratch) const {
    const KernelTable& kernels = *c_.kernels;
    float* const inputs = scratch;
    float* const products = inputs + t_.tiles_per_block * kFrequencies * frequency_floats_;
    float* const lines = products + kFrequencies * t_.tile_rows * t_.pitch;
    const auto panels = [&](int64_t tile) {
      return inputs + (tile - unit.first_tile) * kFrequencies * frequency_floats_;
    };

    for (int64_t tile = unit.first_tile; tile < unit.last_tile; ++tile) {
      transform_inputs(state.values[c_.input], unit.group, tile, lines, panels(tile));
    }
    const int64_t codebook_floats = codebook_.size() / kFrequencies;
    const int64_t first_row_tile = unit.group * row_tiles_;
    for (int64_t output = unit.first_output; output < unit.last_output; output += t_.tile_rows) {
      const int64_t rows = std::min(t_.tile_rows, unit.last_output - output);
      const int64_t row_tile = first_row_tile + output % t_.group_outputs / t_.tile_rows;
      const uint16_t* const codes = codes_.data() + row_tile * blocks_ * t_.tile_rows;
      for (int64_t tile = unit.first_tile; tile < unit.last_tile; ++tile) {
        for (int64_t f = 0; f < kFrequencies; ++f) {
          kernels.gemm_tile(codes, codebook_.data() + f * codebook_floats, c_.weight->block.channels, blocks_,
                            panels(tile) + f * frequency_floats_, t_.pitch, products + f * t_.tile_rows * t_.pitch,
                            t_.pitch, t_.lanes_of(tile));
        }
        transform_products(products, output, rows, tile, lines, state);
      }
    }
  }

  // panels[f][c][t]: each frequency of the inputs of each tile.
  void transform_inputs(const float* input, int64_t group, int64_t tile, float* lines, float* panels) const {
    const ConvGeometry& g = c_.geometry;
    const int64_t real = c_.weight->channels;
    for (int64_t c = 0; c < real; ++c) {
      for_segments(tile, [&](const Segment& s) {
        const float* plane = input + ((s.image * g.groups + group) * real + c) * g.plane();
        for (int64_t i = 0; i < 4; ++i) {
          unfold_line(plane, s.y - g.pad_top + i, s.x - g.pad_left, 2 * s.size + 2, lines + i * line_floats_);
        }
        c_.kernels->winograd_input(lines, line_floats_, s.size, panels + c * t_.pitch + s.at, frequency_floats_);
      });
    }
    // Last, because the transform of a channel runs over into the row of the next one.
    for (int64_t c = real; c < channels_; ++c) {
      for (int64_t f = 0; f < kFrequencies; ++f) {
        std::fill_n(panels + f * frequency_floats_ + c * t_.pitch, t_.pitch, 0.0f);
      }
    }
  }

  // line[i] = plane[y][x + i] for i < size, zero outside.
  void unfold_line(const float* plane, int64_t y, int64_t x, int64_t size, float* line) const {
    const ConvGeometry& g = c_.geometry;
    const bool outside = y < 0 || y >= g.height;
    const int64_t begin = outside ? size : std::clamp<int64_t>(-x, 0, size);
    const int64_t end = outside ? size : std::clamp(g.width - x, begin, size);
    std::fill_n(line, begin, 0.0f);
    std::copy_n(plane + y * g.width + x + begin, end - begin, line + begin);
    std::fill(line + end, line + size, 0.0f);
  }

  void transform_products(const float* products, int64_t output, int64_t rows, int64_t tile, float* lines,
                          const RunState& state) const {
    const ConvGeometry& g = c_.geometry;
    for_segments(tile, [&](const Segment& s) {
      for (int64_t r = 0; r < rows; ++r) {
        c_.kernels->winograd_output(products + r * t_.pitch + s.at, t_.tile_rows * t_.pitch, s.size,
                                    lines + r * line_floats_, t_.tile_rows * line_floats_);
      }
      for (int64_t i = 0; i < std::min<int64_t>(2, g.out_height - s.y); ++i) {
        c_.finish(lines + i * t_.tile_rows * line_floats_, line_floats_, output, rows,
                  s.image * g.out_plane() + (s.y + i) * g.out_width + s.x, std::min(2 * s.size, g.out_width - s.x),
                  state);
      }
    });
  }

  Convolution c_;
  Tiling t_;
  int64_t row_tiles_;  // of a group
  int64_t blocks_;     // J
  int64_t channels_;   // D
  AlignedBuffer<uint16_t> codes_;
  AlignedBuffer<float> codebook_;  // [F, K, channels of a block]
  int64_t frequency_floats_ = 0;   // of the panel of one frequency
  int64_t line_floats_ = 0;
};

}  // namespace

bool winograd_applies(const Convolution& c) {
  const Weight& weight = *c.weight;
  const ConvGeometry& g = c.geometry;
  return has_joint_codebook(weight) && weight.kernel_rows == 3 && weight.kernel_columns == 3 &&
         weight.block.rows == 3 && weight.block.columns == 3 && g.stride_y == 1 && g.stride_x == 1 &&
         g.dilation_y == 1 && g.dilation_x == 1;
}

double winograd_cost(const Convolution& c, int threads) {
  if (!winograd_applies(c)) return std::numeric_limits<double>::infinity();
  const Tiling t = tile(c, threads);
  const auto channels = static_cast<double>(c.weight->blocks_per_row() * c.weight->block.channels);
  const auto outputs = static_cast<double>(c.weight->outputs);
  const auto lanes = static_cast<double>(c.kernels->lanes);
  const double columns = static_cast<double>(tile_columns_of(c.geometry));
  // Tiles of one row fill whole vectors when they are transformed, and tiles of all rows when they are multiplied.
  const double segments = static_cast<double>(t.count) / columns * std::ceil(columns / lanes);
  const double vectors = static_cast<double>(t.num_tiles * t.tile_lanes) / lanes;
  const double products = kFrequencies * channels * outputs * (vectors + kFindCost * static_cast<double>(t.num_tiles));
  const double transforms = segments * (kInputCost * channels * static_cast<double>(t.groups * t.output_splits) +
                                        kOutputCost * outputs);
  return (products + transforms) / std::min<double>(static_cast<double>(t.units()), threads);
}

std::unique_ptr<Step> make_winograd_step(const Layer& layer, const Convolution& convolution,
                                         const PlanContext& context) {
  return std::make_unique<WinogradStep>(layer, convolution, context);
}

}  // namespace pyquant
