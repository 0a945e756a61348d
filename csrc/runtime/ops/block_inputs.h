// The inputs of blocks as quads, side by side: what tables of products in integers are made of.
//
// Blocks of 4, 8.. channels take quads of channels as they are. For spatial blocks, quads of channels are turned into
// quads of taps: each channel of a block has its taps, four to a quad.
#pragma once

#include <vector>

#include "runtime/ops/convolution.h"

namespace pyquant {

class BlockInputs {
 public:
  // For tiles of which rows lie `pitch` apart.
  BlockInputs(const Convolution& c, int64_t pitch);

  // Whether there are such inputs for a weight.
  static bool exist(const Convolution& c);

  // Quads of a block.
  static int64_t block_quads(const Weight& weight);

  // Centroids [.., d] as quads [.., block_quads()].
  static AlignedBuffer<uint32_t> centroid_quads(const Weight& weight, const AlignedBuffer<float>& values);

  int64_t floats() const { return panel_quads() + turned_quads(); }

  // Write the quads [J * block_quads(), pitch] of some pixels to memory of floats(), and return where they begin.
  const uint32_t* write(const Convolution& c, const RunState& state, int64_t pixel, int64_t pixels,
                        float* memory) const;

 private:
  int64_t panel_quads() const { return patches_.rows() * panel_pitch_; }
  int64_t turned_quads() const;

  Patches patches_;
  int64_t pitch_;
  int64_t behind_;  // pixels behind those of a tile that have inputs in its panel
  int64_t panel_pitch_;
  int64_t taps_;                // of a kernel, where quads of channels are turned; else 0
  std::vector<int32_t> begin_;  // of the taps of each quad of channels, likewise
};

}  // namespace pyquant
