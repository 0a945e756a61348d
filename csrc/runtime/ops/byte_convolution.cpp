#include "runtime/ops/byte_convolution.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "runtime/coded_rows.h"

namespace pyquant {
namespace {

// Far enough below 2^31 for what rounding adds.
constexpr double kMostInt = 2e9;

// What all outputs have in common, behind what an epilogue holds for each.
enum Common { kLow, kHigh, kResidualScale, kPlain, kNumCommon };

}  // namespace

ConvGeometry in_quads(ConvGeometry geometry) {
  geometry.channels = ceil_div(geometry.channels, kQuad);
  return geometry;
}

ByteConvolution::ByteConvolution(const Convolution& convolution, const PlanContext& context)
    : c(convolution), writes_bytes_(context.formats[convolution.output] == Format::kBytes) {}

AlignedBuffer<uint32_t> ByteConvolution::take_dense_rows() {
  const Weight& weight = *c.weight;
  const int64_t depth = quad_order(weight, QuadSource::kStored).depth();
  AlignedBuffer<uint32_t> quads(weight.outputs * depth);
  for (int64_t o = 0; o < weight.outputs; ++o) {
    const ByteRow row = write_byte_row(weight, o, quads.data() + o * depth);
    weight_scale.push_back(row.scale);
    weight_sums.push_back(row.sum);
  }
  return quads;
}

AlignedBuffer<float> ByteConvolution::take_codebooks() {
  ByteCodebooks bytes = byte_codebooks(*c.weight);
  weight_scale.assign(c.weight->outputs, bytes.scale);
  return std::move(bytes.values);
}

AlignedBuffer<uint32_t> ByteConvolution::take_centroids() {
  const ByteCodebooks joint = joint_byte_codebook(*c.weight);
  weight_scale.assign(c.weight->outputs, joint.scale);
  weight_sums = joint_row_sums(*c.weight, joint.values);
  return centroid_quads(joint.values, c.weight->block);
}

float ByteConvolution::largest_weight() const {
  const int64_t depth = c.weight->depth();
  AlignedBuffer<float> row(depth);
  float most = 0;
  for (int64_t o = 0; o < c.weight->outputs; ++o) {
    c.decode(o, 1, row.data(), depth);
    most = std::max(most, largest(row.data(), depth));
  }
  return most;
}

QuadDecoder ByteConvolution::take_decoder(bool apart) {
  const ByteCodebooks codebooks = decoded_codebooks(*c.weight) == 1 ? joint_byte_codebook(*c.weight)
                                                                    : codebooks_in_parts(*c.weight, largest_weight());
  QuadDecoder decoder(*c.weight, codebooks.values, apart);
  weight_scale.assign(c.weight->outputs, codebooks.scale);
  weight_sums = decoder.row_sums(*c.kernels);
  return decoder;
}

int64_t ByteConvolution::all_epilogue_floats() const { return 2 * padded_outputs() + kNumCommon; }

int64_t ByteConvolution::finish_floats(int64_t pitch) const {
  return writes_bytes_ ? 0 : kRows * pitch + kSlackBytes / 4;
}

void ByteConvolution::settle(int64_t shift, const PlanContext& context) {
  shift_ = shift;
  const auto known = [&](ValueId value) { return value < 0 ? Quantization{} : context.ranges[value]; };
  const std::optional<Quantization> in = known(c.input), out = known(c.output), before = known(c.residual);
  if (!in || (writes_bytes_ && !(out && before))) return;
  std::vector<float> epilogue(all_epilogue_floats());
  write({*in, out.value_or(Quantization{}), before.value_or(Quantization{})}, epilogue.data());
  settled_ = std::move(epilogue);
  weight_scale = std::vector<float>();
  weight_sums = std::vector<int64_t>();
}

void ByteConvolution::write_epilogue(const RunState& state, float* epilogue) const {
  if (!settled_.empty()) return;
  const Quantization before = c.residual < 0 ? Quantization{} : state.quantization[c.residual];
  write({state.quantization[c.input], state.quantization[c.output], before}, epilogue);
}

void ByteConvolution::write(const Quantizations& bytes, float* epilogue) const {
  const Quantization in = bytes.in;
  const Quantization out = writes_bytes_ ? bytes.out : Quantization{};
  const double unshifted = std::ldexp(1.0, static_cast<int>(shift_));
  double residual_zero = 0;
  if (writes_bytes_ && c.residual >= 0) {
    residual_zero = static_cast<double>(bytes.before.zero) * bytes.before.scale / out.scale;
  }
  float* const row_scale = epilogue;
  float* const row_bias = epilogue + padded_outputs();
  float* const common = epilogue + 2 * padded_outputs();
  for (int64_t o = 0; o < c.weight->outputs; ++o) {
    const double unit = static_cast<double>(in.scale) * weight_scale[o] * c.scale[o] / out.scale;
    const double zeros = unit * static_cast<double>(weight_sums[o]) * in.zero;
    row_scale[o] = static_cast<float>(unit * unshifted);
    row_bias[o] = static_cast<float>(c.bias[o] / static_cast<double>(out.scale) - zeros + out.zero - residual_zero);
  }
  const auto nearest_byte = [&](float value) {
    return std::nearbyint(std::clamp(value / out.scale + static_cast<float>(out.zero), 0.0f, 255.0f));
  };
  const Clamp clamp = clamp_of(c.activation);
  common[kLow] = nearest_byte(clamp.low);
  common[kHigh] = nearest_byte(clamp.high);
  common[kResidualScale] = c.residual < 0 ? 0.0f : bytes.before.scale / out.scale;
  // Sums are ints.
  double most = 0;
  for (int64_t o = 0; o < c.weight->outputs; ++o) {
    most = std::max(most, std::abs(row_scale[o]) * std::ldexp(1.0, 31) + std::abs(row_bias[o]));
  }
  const bool is_bounded = most + 255.0 * std::abs(common[kResidualScale]) < kMostInt;
  common[kPlain] = is_bounded && common[kLow] == 0.0f && common[kHigh] == 255.0f ? 1.0f : 0.0f;
  std::fill(row_scale + c.weight->outputs, row_bias, 0.0f);
  // Behind the last output: zeros, also where the residual's are added.
  std::fill(row_bias + c.weight->outputs, common, static_cast<float>(out.zero - residual_zero));
}

void ByteConvolution::finish(const int32_t* tile, int64_t pitch, int64_t output, int64_t rows, int64_t pixel,
                             int64_t count, const float* epilogue, const RunState& state, float* scratch) const {
  if (writes_bytes_) {
    for_tiles(output, rows, pixel, count, epilogue, state, [&](const FinishedTile8& to, int64_t first, int64_t run) {
      c.kernels->finish_tile8(tile + first, pitch, to.finish, to.out, to.out_pitch, to.rows, run);
    });
    return;
  }
  const float* const row_scale = settled_or(epilogue);
  const float* const row_bias = row_scale + padded_outputs();
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t some = std::min(kRows, rows - first);
    for (int64_t r = 0; r < some; ++r) {
      for (int64_t p = 0; p < count; ++p) scratch[r * pitch + p] = static_cast<float>(tile[(first + r) * pitch + p]);
    }
    c.finish(scratch, pitch, row_scale + output + first, row_bias + output + first, output + first, some, pixel, count,
             state);
  }
}

FinishedTile8 ByteConvolution::tile_of(int64_t output, int64_t rows, const float* epilogue) const {
  const float* const common = epilogue + 2 * padded_outputs();
  return {.finish = {.scale = epilogue + output,
                     .bias = epilogue + padded_outputs() + output,
                     .residual = nullptr,
                     .residual_scale = common[kResidualScale],
                     .low = static_cast<uint8_t>(common[kLow]),
                     .high = static_cast<uint8_t>(common[kHigh]),
                     .plain = common[kPlain] != 0.0f},
          .out = nullptr,
          .out_pitch = c.geometry.written_plane,
          .rows = round_up(rows, kQuad)};
}

void ByteConvolution::expect(int64_t output, int64_t rows, int64_t pixel, int64_t count, const RunState& state) const {
  if (!writes_bytes_) return c.expect(output, rows, pixel, count, state);
  const int64_t pitch = c.geometry.written_plane;
  const int64_t quads = ceil_div(c.weight->outputs, kQuad);
  c.geometry.for_written(pixel, count, [&](int64_t plane, int64_t first, int64_t run) {
    const int64_t at = (plane * quads + output / kQuad) * pitch + first;
    expect_rows<true>(state.quads(c.output) + at, pitch, ceil_div(rows, kQuad), run);
    if (c.residual >= 0 && state.quads(c.residual) != state.quads(c.output)) {
      expect_rows<false>(state.quads(c.residual) + at, pitch, ceil_div(rows, kQuad), run);
    }
  });
}

}  // namespace pyquant
