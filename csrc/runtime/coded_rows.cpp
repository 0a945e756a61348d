#include "runtime/coded_rows.h"

#include <algorithm>

namespace pyquant {
namespace {

// Weights of a codebook that the 16 bits of gemm_tile's offsets tell apart.
constexpr int64_t kMostFound = 1 << 16;

// A joint codebook should stay in the first- or second-level cache beside the inputs that it is multiplied with.
constexpr int64_t kMostJointCentroids = 1024;

}  // namespace

int64_t joint_centroids(const Weight& weight) {
  int64_t centroids = weight.centroids;
  for (int64_t m = 1; m < weight.codebooks && centroids <= kMostFound; ++m) centroids *= weight.centroids;
  return centroids;
}

bool has_joint_codebook(const Weight& weight) {
  if (!weight.has_codes() || joint_centroids(weight) * weight.block.dim() > kMostFound) return false;
  return weight.codebooks == 1 || joint_centroids(weight) <= kMostJointCentroids;
}

AlignedBuffer<float> joint_codebook(const Weight& weight, const AlignedBuffer<float>& codebooks) {
  const int64_t dim = weight.block.dim();
  AlignedBuffer<float> joint(joint_centroids(weight) * dim);
  std::fill_n(joint.data(), joint.size(), 0.0f);
  for (int64_t k = 0; k < joint_centroids(weight); ++k) {
    int64_t rest = k;
    for (int64_t m = 0; m < weight.codebooks; ++m, rest /= weight.centroids) {
      const float* centroid = codebooks.data() + (m * weight.centroids + rest % weight.centroids) * dim;
      for (int64_t i = 0; i < dim; ++i) joint[k * dim + i] += centroid[i];
    }
  }
  return joint;
}

AlignedBuffer<uint16_t> joint_codes(const Weight& weight, int64_t groups, int64_t tile_rows, int64_t step) {
  const int64_t blocks = weight.blocks_per_row();
  const int64_t group_outputs = weight.outputs / groups;
  const int64_t row_tiles = ceil_div(group_outputs, tile_rows);
  AlignedBuffer<uint16_t> codes(groups * row_tiles * blocks * tile_rows);
  std::fill_n(codes.data(), codes.size(), uint16_t{0});
  for (int64_t o = 0; o < weight.outputs; ++o) {
    const int64_t row = o % group_outputs;
    uint16_t* tile = &codes[((o / group_outputs) * row_tiles + row / tile_rows) * blocks * tile_rows];
    for (int64_t j = 0; j < blocks; ++j) {
      int64_t code = 0;
      for (int64_t m = weight.codebooks - 1; m >= 0; --m) {
        code = code * weight.centroids + weight.codes[(m * weight.outputs + o) * blocks + j];
      }
      tile[j * tile_rows + row % tile_rows] = static_cast<uint16_t>(code * step);
    }
  }
  return codes;
}

}  // namespace pyquant
