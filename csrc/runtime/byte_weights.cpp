#include "runtime/byte_weights.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "runtime/coded_rows.h"

namespace pyquant {
namespace {

constexpr float kMostByte = 127;

float largest(const float* values, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(values[i]));
  return most;
}

// A scale by which the largest value becomes `byte`; any, where all are zero.
float scale_for(float most, float byte) { return most > 0 ? most / byte : 1.0f; }

}  // namespace

bool sums_fit(const Weight& weight) { return checked_multiply(weight.depth(), 128 * 255) <= INT32_MAX; }

QuadSource quad_source(const Weight& weight, int64_t groups) {
  // A quad must not hold channels of two groups.
  if (groups > 1 && (weight.channels % kQuad != 0 || weight.outputs / groups % kQuad != 0)) return QuadSource::kNone;
  if (!sums_fit(weight)) return QuadSource::kNone;
  if (weight.is_dense()) return QuadSource::kDense;
  const Block& block = weight.block;
  if (!has_joint_codebook(weight)) return QuadSource::kNone;
  if (block.rows == 1 && block.columns == 1 && block.channels % kQuad == 0) return QuadSource::kCentroid;
  const bool is_whole_kernel = block.rows == weight.kernel_rows && block.columns == weight.kernel_columns;
  return is_whole_kernel && block.channels <= 2 ? QuadSource::kSpread : QuadSource::kNone;
}

WeightOrder quad_order(const Weight& weight, QuadSource source) {
  WeightOrder order{.channels = ceil_div(weight.channels, kQuad),
                    .kernel_rows = weight.kernel_rows,
                    .kernel_columns = weight.kernel_columns};
  order.block = source == QuadSource::kCentroid
                    ? Block{.channels = weight.block.channels / kQuad}
                    : Block{.channels = 1, .rows = weight.kernel_rows, .columns = weight.kernel_columns};
  return order;
}

uint32_t quad_of(const float* values, int64_t count, int64_t step) {
  uint32_t quad = 0;
  for (int64_t i = 0; i < std::min(count, kQuad); ++i) {
    quad |= static_cast<uint32_t>(static_cast<uint8_t>(static_cast<int>(values[i * step]))) << (8 * i);
  }
  return quad;
}

ByteCodebooks byte_codebooks(const Weight& weight) {
  float most = largest(weight.codebook.data(), weight.codebook.size());
  if (weight.codebooks > 1 && has_joint_codebook(weight)) {
    const AlignedBuffer<float> joint = joint_codebook(weight, weight.codebook);
    most = std::max(most, largest(joint.data(), joint.size()));
  }
  // Each of M summands is rounded by up to a half.
  ByteCodebooks bytes{.scale = scale_for(most, kMostByte - static_cast<float>(weight.codebooks / 2)),
                      .values = AlignedBuffer<float>(weight.codebook.size())};
  for (int64_t i = 0; i < bytes.values.size(); ++i) bytes.values[i] = std::nearbyint(weight.codebook[i] / bytes.scale);
  return bytes;
}

ByteRow write_byte_row(const Weight& weight, int64_t output, uint32_t* quads) {
  const int64_t taps = weight.kernel_rows * weight.kernel_columns;
  const float* const row = weight.dense.data() + output * weight.depth();
  // Multiples of a unit are bytes as they are.
  const float unit = weight.units.empty() ? 0.0f : weight.units[output];
  ByteRow result{.scale = unit > 0 ? unit : scale_for(largest(row, weight.depth()), kMostByte), .sum = 0};
  std::vector<float> bytes(weight.depth());
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = std::nearbyint(row[i] / result.scale);
    result.sum += static_cast<int64_t>(bytes[i]);
  }
  for (int64_t channel = 0; channel < weight.channels; channel += kQuad) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      *quads++ = quad_of(&bytes[channel * taps + tap], weight.channels - channel, taps);
    }
  }
  return result;
}

std::vector<int64_t> row_sums(const Weight& weight, const AlignedBuffer<float>& codebooks) {
  const int64_t dim = weight.block.dim();
  std::vector<int64_t> of_centroid(weight.codebooks * weight.centroids, 0);
  for (size_t k = 0; k < of_centroid.size(); ++k) {
    for (int64_t i = 0; i < dim; ++i) of_centroid[k] += static_cast<int64_t>(codebooks[k * dim + i]);
  }
  std::vector<int64_t> sums(weight.outputs, 0);
  const int64_t blocks = weight.blocks_per_row();
  for (int64_t m = 0; m < weight.codebooks; ++m) {
    for (int64_t o = 0; o < weight.outputs; ++o) {
      const uint16_t* codes = weight.codes.data() + (m * weight.outputs + o) * blocks;
      for (int64_t j = 0; j < blocks; ++j) sums[o] += of_centroid[m * weight.centroids + codes[j]];
    }
  }
  return sums;
}

AlignedBuffer<uint32_t> centroid_quads(const AlignedBuffer<float>& codebook) {
  AlignedBuffer<uint32_t> quads(codebook.size() / kQuad);
  for (int64_t i = 0; i < quads.size(); ++i) quads[i] = quad_of(codebook.data() + kQuad * i, kQuad);
  return quads;
}

AlignedBuffer<uint32_t> spread_quads(const AlignedBuffer<float>& codebook, const Block& block, int64_t row_multiple) {
  const int64_t taps = block.rows * block.columns;
  const int64_t row_width = round_up(block.columns, row_multiple);
  const int64_t width = round_up(block.rows * row_width, kSpreadTaps);
  const int64_t centroids = codebook.size() / block.dim();
  AlignedBuffer<uint32_t> quads((centroids + 1) * width);
  std::fill_n(quads.data(), quads.size(), 0u);
  for (int64_t k = 0; k < centroids; ++k) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      quads[k * width + tap / block.columns * row_width + tap % block.columns] =
          quad_of(codebook.data() + k * block.dim() + tap, block.channels, taps);
    }
  }
  return quads;
}

AlignedBuffer<uint16_t> spread_codes(const Weight& weight) {
  const int64_t blocks = weight.blocks_per_row();
  const int64_t pitch = ceil_div(weight.channels, kQuad) * (kQuad / weight.block.channels);
  const auto zero = static_cast<uint16_t>(joint_centroids(weight));
  const AlignedBuffer<uint16_t> joint = joint_codes(weight, 1, 1, 1);
  AlignedBuffer<uint16_t> codes(weight.outputs * pitch);
  for (int64_t o = 0; o < weight.outputs; ++o) {
    for (int64_t j = 0; j < pitch; ++j) codes[o * pitch + j] = j < blocks ? joint[o * blocks + j] : zero;
  }
  return codes;
}

}  // namespace pyquant
