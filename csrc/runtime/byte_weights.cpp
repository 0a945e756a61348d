#include "runtime/byte_weights.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"
#include "runtime/coded_rows.h"

namespace pyquant {
namespace {

constexpr float kMostWeight = 127;

// A scale by which the largest value becomes `byte`; any, where all are zero.
float scale_for(float most, float byte) { return most > 0 ? most / byte : 1.0f; }

// Of the values of each centroid [d].
std::vector<int64_t> sums_of(const AlignedBuffer<float>& values, int64_t dim) {
  std::vector<int64_t> sums(values.size() / dim, 0);
  for (int64_t i = 0; i < values.size(); ++i) sums[i / dim] += static_cast<int64_t>(values[i]);
  return sums;
}

// Add the sums of the centroids that codes [O, J] name.
void add_row_sums(const uint16_t* codes, int64_t blocks, const int64_t* of_centroid, std::vector<int64_t>& sums) {
  for (int64_t& sum : sums) {
    for (int64_t j = 0; j < blocks; ++j) sum += of_centroid[*codes++];
  }
}

}  // namespace

float round_to_bytes(float* values, int64_t count, int64_t step) {
  float most = 0;
  for (int64_t i = 0; i < count; i += step) most = std::max(most, std::fabs(values[i]));
  const float scale = scale_for(most, kMostWeight);
  for (int64_t i = 0; i < count; i += step) values[i] = std::nearbyint(values[i] / scale);
  return scale;
}

float largest(const float* values, int64_t count) {
  float most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(values[i]));
  return most;
}

bool sums_fit(const Weight& weight) { return checked_multiply(weight.depth(), 128 * kMostInput) <= INT32_MAX; }

QuadSource quad_source(const Weight& weight, int64_t groups) {
  // A quad must not hold channels of two groups.
  if (groups > 1 && (weight.channels % kQuad != 0 || weight.outputs / groups % kQuad != 0)) return QuadSource::kNone;
  if (!sums_fit(weight)) return QuadSource::kNone;
  if (!weight.has_codes()) return QuadSource::kStored;
  const bool has_quads = weight.block.channels % kQuad == 0;
  if (has_quads && has_joint_codebook(weight)) return QuadSource::kCentroid;
  // One more centroid is all zero.
  const int64_t centroids = has_joint_codebook(weight) ? joint_centroids(weight) : weight.centroids;
  if (centroids > UINT16_MAX) return QuadSource::kNone;
  return has_quads || weight.block.channels <= 2 ? QuadSource::kDecoded : QuadSource::kNone;
}

WeightOrder quad_order(const Weight& weight, QuadSource source) {
  WeightOrder order{.channels = ceil_div(weight.channels, kQuad),
                    .kernel_rows = weight.kernel_rows,
                    .kernel_columns = weight.kernel_columns,
                    .block = weight.block};
  order.block.channels = ceil_div(weight.block.channels, kQuad);
  if (source == QuadSource::kStored) order.block = {.rows = weight.kernel_rows, .columns = weight.kernel_columns};
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
  ByteCodebooks result{.values = AlignedBuffer<float>(weight.codebook.size())};
  std::copy_n(weight.codebook.data(), weight.codebook.size(), result.values.data());
  result.scale = round_to_bytes(result.values.data(), result.values.size());
  return result;
}

ByteCodebooks joint_byte_codebook(const Weight& weight) {
  ByteCodebooks result{.values = joint_codebook(weight, weight.codebook)};
  result.scale = round_to_bytes(result.values.data(), result.values.size());
  return result;
}

ByteCodebooks codebooks_in_parts(const Weight& weight, float largest_weight) {
  const float most = std::max(largest(weight.codebook.data(), weight.codebook.size()), largest_weight);
  // Each of M summands is rounded by up to half a part.
  const float most_byte = kMostWeight - static_cast<float>(weight.codebooks) / (2 * kPart);
  ByteCodebooks parts{.scale = scale_for(most, most_byte), .values = AlignedBuffer<float>(weight.codebook.size())};
  const float part = parts.scale / kPart;
  for (int64_t i = 0; i < parts.values.size(); ++i) parts.values[i] = std::nearbyint(weight.codebook[i] / part);
  return parts;
}

ByteRow write_byte_row(const Weight& weight, int64_t output, uint32_t* quads) {
  const int64_t taps = weight.kernel_rows * weight.kernel_columns;
  const int64_t begin = output * weight.depth(), end = begin + weight.depth();
  ByteRow result{.scale = 1, .sum = 0};
  std::vector<float> bytes;
  if (weight.dense.empty()) {
    result.scale = weight.units[output];
    bytes.assign(weight.bytes.data() + begin, weight.bytes.data() + end);
  } else {
    bytes.assign(weight.dense.data() + begin, weight.dense.data() + end);
    result.scale = round_to_bytes(bytes.data(), weight.depth());
  }
  for (const float byte : bytes) result.sum += static_cast<int64_t>(byte);
  for (int64_t channel = 0; channel < weight.channels; channel += kQuad) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      *quads++ = quad_of(&bytes[channel * taps + tap], weight.channels - channel, taps);
    }
  }
  return result;
}

std::vector<int64_t> row_sums(const Weight& weight, const AlignedBuffer<float>& codebooks) {
  std::vector<int64_t> sums(weight.outputs, 0);
  const std::vector<int64_t> of_centroid = sums_of(codebooks, weight.block.dim());
  for (int64_t m = 0; m < weight.codebooks; ++m) {
    const uint16_t* const codes = weight.codes.data() + m * weight.outputs * weight.blocks_per_row();
    add_row_sums(codes, weight.blocks_per_row(), of_centroid.data() + m * weight.centroids, sums);
  }
  return sums;
}

std::vector<int64_t> joint_row_sums(const Weight& weight, const AlignedBuffer<float>& joint) {
  std::vector<int64_t> sums(weight.outputs, 0);
  const AlignedBuffer<uint16_t> codes = joint_codes(weight, 1, 1, 1);
  add_row_sums(codes.data(), weight.blocks_per_row(), sums_of(joint, weight.block.dim()).data(), sums);
  return sums;
}

AlignedBuffer<uint32_t> centroid_quads(const AlignedBuffer<float>& codebook, const Block& block) {
  const int64_t taps = block.rows * block.columns;
  AlignedBuffer<uint32_t> quads(codebook.size() / kQuad);
  for (int64_t i = 0; i < quads.size(); ++i) {
    quads[i] = quad_of(codebook.data() + i / taps * kQuad * taps + i % taps, kQuad, taps);
  }
  return quads;
}

}  // namespace pyquant
