// The weights of a layer as gemm_tile() reads them: codes of a tile of output rows side by side, and one codebook.
#pragma once

#include <cstdint>

#include "runtime/graph.h"

namespace pyquant {

// To decode a weight by Convolution::decode(), in vector multiply-adds; 0 of dense ones.
inline double decode_cost(const Weight& weight) {
  constexpr double kByteCost = 0.2;
  return weight.bytes.empty() ? 0.5 * static_cast<double>(weight.codebooks) : kByteCost;
}

// How many centroids there are of a joint codebook, which has every combination of centroids of the weight's codebooks;
// where they are too many, any number that is.
int64_t joint_centroids(const Weight& weight);

// Whether a coded weight has a joint codebook that gemm_tile can read: every combination of the centroids of its
// codebooks, of which one alone stays as it is, is a centroid of it.
bool has_joint_codebook(const Weight& weight);

// The codebooks of which weights are sums where they are decoded: the joint one alone, where there is one, or all.
inline int64_t decoded_codebooks(const Weight& weight) { return has_joint_codebook(weight) ? 1 : weight.codebooks; }

// The joint codebook [K, d] of such a weight, of its own codebooks [M, K, d] or of others that its codes are to name.
AlignedBuffer<float> joint_codebook(const Weight& weight, const AlignedBuffer<float>& codebooks);

// Codes in that codebook, times `step`, as [groups, row tiles of a group, J, tile_rows]; rows behind the last of a
// group have code 0.
AlignedBuffer<uint16_t> joint_codes(const Weight& weight, int64_t groups, int64_t tile_rows, int64_t step);

}  // namespace pyquant
