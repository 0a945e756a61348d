// Rows of quads that are decoded before they are multiplied: put together of several centroids, or sums of some.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "runtime/graph.h"

namespace pyquant {

class QuadDecoder {
 public:
  // Of a quad, in vector multiply-adds.
  static double cost(const Weight& weight);

  // Whether rows of the kernel can be written apart: blocks are whole kernels of one or two channels.
  static bool come_apart(const Weight& weight);

  // Of a weight whose quad_source() is kDecoded, with its codebooks_in_parts() where it has several and no joint
  // codebook, else with its joint_byte_codebook(); rows of the kernel can be told to lie `apart`.
  QuadDecoder(const Weight& weight, const AlignedBuffer<float>& codebooks, bool apart);

  // The sum of all weights of each output.
  std::vector<int64_t> row_sums(const KernelTable& kernels) const;

  // Write the quads of `count` outputs from `output` on, in quad_order(), of which rows lie `pitch` apart; where rows
  // of the kernel lie apart, those of all channels from begin[y] on.
  void decode(const KernelTable& kernels, int64_t output, int64_t count, const int32_t* begin, uint32_t* rows,
              int64_t pitch) const;
  static constexpr int32_t kTogether = 0;  // what `begin` points to where they do not

 private:
  // Of bytes or parts, as ByteCentroids has them.
  template <typename Value>
  AlignedBuffer<Value> arranged(const Block& block, const AlignedBuffer<float>& codebooks) const;
  void write_codes(const Weight& weight);

  ByteCentroids centroids_;  // one more in each codebook is all zero
  int64_t code_pitch_ = 0;
  AlignedBuffer<int8_t> bytes_;
  AlignedBuffer<int16_t> parts_;
  AlignedBuffer<uint16_t> codes_;  // [codebooks, O, code_pitch_]
};

}  // namespace pyquant
