#include "kernels/reference.h"

namespace pyquant {
namespace {

constexpr int64_t kTableColumns = 8;

void gemm_tile_reference(const float* a, int64_t a_pitch, const float* b, int64_t b_pitch, float* out,
                         int64_t out_pitch, int64_t rows, int64_t pixels, int64_t depth) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < pixels; ++p) {
      float sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += a[r * a_pitch + k] * b[k * b_pitch + p];
      out[r * out_pitch + p] = sum;
    }
  }
}

void decode_rows_reference(const uint16_t* codes, int64_t code_pitch, const float* codebook, int64_t dim, float* out,
                           int64_t out_pitch, int64_t rows, int64_t blocks, bool accumulate) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < blocks; ++j) {
      const float* centroid = codebook + codes[r * code_pitch + j] * dim;
      float* block = out + r * out_pitch + j * dim;
      for (int64_t i = 0; i < dim; ++i) block[i] = accumulate ? block[i] + centroid[i] : centroid[i];
    }
  }
}

void table_sum_reference(const uint16_t* codes, const float* table, int64_t block_stride, float* sums,
                         int64_t outputs) noexcept {
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t b = 0; b < kBlocksPerPass; ++b) {
      const float* row = table + b * block_stride + codes[o * kBlocksPerPass + b] * kTableColumns;
      for (int64_t p = 0; p < kTableColumns; ++p) sums[o * kTableColumns + p] += row[p];
    }
  }
}

void finish_tile_reference(const float* in, int64_t in_pitch, const float* scale, const float* bias,
                           const float* residual, float low, float high, float* out, int64_t out_pitch, int64_t rows,
                           int64_t count) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < count; ++p) {
      float value = in[r * in_pitch + p] * scale[r] + bias[r];
      if (residual != nullptr) value += residual[r * out_pitch + p];
      // Written so that a NaN fails both comparisons and stays.
      if (value < low) value = low;
      if (value > high) value = high;
      out[r * out_pitch + p] = value;
    }
  }
}

// Independent sums, so that not the latency of one addition is measured.
int64_t peak_reference(int64_t steps, float* sink) noexcept {
  constexpr int64_t kSums = 8;
  float sums[kSums] = {};
  for (int64_t i = 0; i < steps; ++i) {
    for (int64_t k = 0; k < kSums; ++k) sums[k] = sums[k] * sink[1] + sink[2];
  }
  for (int64_t k = 0; k < kSums; ++k) sink[0] += sums[k];
  return kSums;
}

}  // namespace

KernelTable reference_kernels() {
  return {.isa = "reference",
          .lanes = 1,
          .tile_rows = 4,
          .tile_pixels = 16,
          .table_pixels = kTableColumns,
          .gemm_tile = &gemm_tile_reference,
          .decode_rows = &decode_rows_reference,
          .table_sum = &table_sum_reference,
          .finish_tile = &finish_tile_reference,
          .peak = &peak_reference};
}

}  // namespace pyquant
