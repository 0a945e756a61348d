// The weights of a layer as gemm_tile() reads them: codes of a tile of output rows side by side, and one codebook.
#pragma once

#include <cstdint>

#include "runtime/graph.h"

namespace pyquant {

// Whether a weight's additive codebooks, if it has several, are few enough to be summed in advance: every combination
// of their centroids is a centroid of one joint codebook.
bool has_joint_codebook(const Weight& weight);

// The codebook [K, d] of such a weight.
AlignedBuffer<float> joint_codebook(const Weight& weight);

// Codes in that codebook as [groups, row tiles of a group, J, tile_rows]; rows behind the last of a group have code 0.
AlignedBuffer<uint16_t> joint_codes(const Weight& weight, int64_t groups, int64_t tile_rows);

}  // namespace pyquant
