#include "runtime/quad_decoder.h"

#include <algorithm>
#include <numeric>

#include "runtime/byte_weights.h"
#include "runtime/coded_rows.h"

namespace pyquant {

// A load of 16 taps for each channel that is put together, and half of one for the rest, is shared by the quads of
// them. It takes 1.8 multiply-adds, by layers of blocks of 2x3x3.
double QuadDecoder::cost(const Weight& weight) {
  constexpr double kByteByByte = 10;
  constexpr double kLoad = 1.8;
  constexpr int64_t kTapsOfVector = 16;
  const Block& block = weight.block;
  const auto codebooks = static_cast<double>(decoded_codebooks(weight));
  if (block.dim() < kQuad && block.rows * block.columns == 1) return kByteByByte * codebooks;
  const int64_t channels = std::min(block.channels, kQuad);
  const auto loads = static_cast<double>(kQuad / channels) + 0.5;
  return codebooks * kLoad * loads / static_cast<double>(std::min(block.dim() / channels, kTapsOfVector));
}

bool QuadDecoder::come_apart(const Weight& weight) {
  const Block& block = weight.block;
  return block.channels < kQuad && block.rows == weight.kernel_rows && block.columns == weight.kernel_columns;
}

QuadDecoder::QuadDecoder(const Weight& weight, const AlignedBuffer<float>& codebooks, bool apart) {
  const Block& block = weight.block;
  const int64_t books = decoded_codebooks(weight);
  centroids_ = {.bytes = nullptr,
                .parts = nullptr,
                .codebooks = books,
                .centroids = codebooks.size() / books / block.dim() + 1,
                .channels = block.channels,
                .rows = apart ? block.rows : 1,
                .columns = apart ? block.columns : block.rows * block.columns};
  if (books == 1) {
    bytes_ = arranged<int8_t>(block, codebooks);
    centroids_.bytes = bytes_.data();
  } else {
    parts_ = arranged<int16_t>(block, codebooks);
    centroids_.parts = parts_.data();
  }
  write_codes(weight);
}

template <typename Value>
AlignedBuffer<Value> QuadDecoder::arranged(const Block& block, const AlignedBuffer<float>& codebooks) const {
  const int64_t width = centroids_.width(), of_centroid = centroids_.channels * width;
  AlignedBuffer<Value> values(centroids_.codebooks * centroids_.centroids * of_centroid);
  std::fill_n(values.data(), values.size(), Value{0});
  const float* value = codebooks.data();
  for (int64_t m = 0; m < centroids_.codebooks; ++m) {
    for (int64_t k = 0; k < centroids_.centroids - 1; ++k) {
      Value* const centroid = values.data() + (m * centroids_.centroids + k) * of_centroid;
      for (int64_t i = 0; i < block.dim(); ++i) {
        const int64_t row = i / centroids_.columns, column = i % centroids_.columns;
        const int64_t at = row / centroids_.rows * width + row % centroids_.rows * centroids_.row_width() + column;
        centroid[at] = static_cast<Value>(*value++);
      }
    }
  }
  return values;
}

std::vector<int64_t> QuadDecoder::row_sums(const KernelTable& kernels) const {
  const int64_t row = code_pitch_ / centroids_.n() * centroids_.quads() * centroids_.columns;
  const std::vector<int32_t> begin = rows_apart(centroids_.rows, row);
  AlignedBuffer<uint32_t> quads(centroids_.rows * row);
  std::vector<int64_t> sums;
  for (int64_t o = 0; o < codes_.size() / centroids_.codebooks / code_pitch_; ++o) {
    decode(kernels, o, 1, begin.data(), quads.data(), quads.size());
    const auto* const bytes = reinterpret_cast<const int8_t*>(quads.data());
    sums.push_back(std::accumulate(bytes, bytes + kQuad * quads.size(), int64_t{0}));
  }
  return sums;
}

// Blocks of which one place of the kernel is put together become neighbours; behind the last block of a row they are
// zero.
void QuadDecoder::write_codes(const Weight& weight) {
  const int64_t blocks = weight.blocks_per_row(), n = centroids_.n();
  const int64_t channel_blocks = ceil_div(weight.channels, weight.block.channels);
  const int64_t places = blocks / channel_blocks;
  const auto zero = static_cast<uint16_t>(centroids_.centroids - 1);
  code_pitch_ = round_up(channel_blocks, n) * places;
  const bool is_joint = centroids_.codebooks < weight.codebooks;
  const AlignedBuffer<uint16_t> joint = is_joint ? joint_codes(weight, 1, 1, 1) : AlignedBuffer<uint16_t>();
  const uint16_t* const stored = is_joint ? joint.data() : weight.codes.data();
  codes_ = AlignedBuffer<uint16_t>(centroids_.codebooks * weight.outputs * code_pitch_);
  uint16_t* to = codes_.data();
  for (int64_t row = 0; row < centroids_.codebooks * weight.outputs; ++row) {
    for (int64_t channel = 0; channel < channel_blocks; channel += n) {
      for (int64_t place = 0; place < places; ++place) {
        for (int64_t i = channel; i < channel + n; ++i) {
          *to++ = i < channel_blocks ? stored[row * blocks + i * places + place] : zero;
        }
      }
    }
  }
}

void QuadDecoder::decode(const KernelTable& kernels, int64_t output, int64_t count, const int32_t* begin,
                         uint32_t* rows, int64_t pitch) const {
  kernels.decode_quads(centroids_, codes_.data() + output * code_pitch_, codes_.size() / centroids_.codebooks,
                       code_pitch_, begin, rows, pitch, count, code_pitch_ / centroids_.n());
}

}  // namespace pyquant
