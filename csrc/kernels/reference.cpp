#include "kernels/reference.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/winograd.h"

namespace pyquant {
namespace {

constexpr int64_t kTableColumns = 8;
constexpr int64_t kTileRows = 4;

void pack_rows_reference(const PanelRun* runs, int64_t num_runs, int64_t step, const void* in, int64_t plane,
                         const PanelRow* rows, int64_t num_rows, uint32_t outside, void* panel,
                         int64_t pitch) noexcept {
  constexpr int64_t kBytes = sizeof(uint32_t);
  for (const PanelRow* row = rows; row < rows + num_rows; ++row) {
    for (const PanelRun* run = runs; run < runs + num_runs; ++run) {
      for (int64_t i = 0; i < run->size; ++i) {
        const int64_t from = row->channel * plane + run->from + i * step;
        const void* value = &outside;
        if (run->from != PanelRun::kOutside) value = static_cast<const char*>(in) + from * kBytes;
        std::memcpy(static_cast<char*>(panel) + (row->row * pitch + run->to + i) * kBytes, value, kBytes);
      }
    }
  }
}

void gemm_tile_reference(const uint16_t* at, const float* codebook, int64_t dim, int64_t blocks, const float* panel,
                         const int32_t* rows, float* out, int64_t out_pitch, int64_t pixels) noexcept {
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t p = 0; p < pixels; ++p) {
      float sum = 0;
      for (int64_t j = 0; j < blocks; ++j) {
        const float* centroid = codebook + (at == nullptr ? r * dim : at[j * kTileRows + r]);
        for (int64_t i = 0; i < dim; ++i) sum += centroid[i] * panel[rows[j * dim + i] + p];
      }
      out[r * out_pitch + p] = sum;
    }
  }
}

void decode_rows_reference(const Codebooks& codebooks, const uint16_t* codes, int64_t codes_step, int64_t code_pitch,
                           float* out, int64_t out_pitch, int64_t rows, int64_t blocks) noexcept {
  const int64_t dim = codebooks.dim;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < blocks; ++j) {
      float* const block = out + r * out_pitch + j * dim;
      std::fill_n(block, dim, 0.0f);
      for (int64_t m = 0; m < codebooks.codebooks; ++m) {
        const int64_t centroid = m * codebooks.centroids + codes[m * codes_step + r * code_pitch + j];
        for (int64_t i = 0; i < dim; ++i) block[i] += codebooks.values[centroid * dim + i];
      }
    }
  }
}

void decode_bytes_reference(const int8_t* bytes, float unit, float* out, int64_t count) noexcept {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(bytes[i]) * unit;
}

void dot_rows_reference(const float* a, int64_t a_pitch, const float* x, int64_t x_pitch, float* out, int64_t out_pitch,
                        int64_t rows, int64_t columns, int64_t depth) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      float sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += a[r * a_pitch + k] * x[c * x_pitch + k];
      out[r * out_pitch + c] = sum;
    }
  }
}

template <const WinogradMatrices& matrices>
void winograd_input_reference(const float* in, int64_t plane, const WinogradRun* runs, int64_t num_runs,
                              int64_t channels, int64_t tiles, float* out, int64_t out_pitch,
                              int64_t out_step) noexcept {
  constexpr int64_t m = matrices.outputs, side = matrices.side();
  const auto input = [&](int64_t c, int64_t t, int64_t y, int64_t x) {
    for (const WinogradRun* run = runs; run < runs + num_runs; ++run) {
      const int64_t column = m * (t - run->tile) + x;
      if (t < run->tile || t >= run->tile + run->size || run->from[y] == WinogradRun::kOutside) continue;
      if (run->begin <= column && column < run->end) return in[c * plane + run->from[y] + column];
    }
    return 0.0f;
  };
  for (int64_t i = 0; i < channels * tiles; ++i) {
    const int64_t c = i / tiles, t = i % tiles;
    for (int64_t f = 0; f < matrices.frequencies(); ++f) {
      float sum = 0;
      for (int64_t y = 0; y < side; ++y) {
        for (int64_t x = 0; x < side; ++x) {
          sum += static_cast<float>(matrices.input[f / side][y] * matrices.input[f % side][x]) * input(c, t, y, x);
        }
      }
      out[f * out_step + c * out_pitch + t] = sum;
    }
  }
}

template <const WinogradMatrices& matrices>
void winograd_output_reference(const float* in, int64_t in_pitch, int64_t tiles, float* lines,
                               int64_t line_pitch) noexcept {
  constexpr int64_t m = matrices.outputs, side = matrices.side();
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t y = 0; y < m; ++y) {
      for (int64_t x = 0; x < m; ++x) {
        float sum = 0;
        for (int64_t f = 0; f < matrices.frequencies(); ++f) {
          sum += static_cast<float>(matrices.output[y][f / side] * matrices.output[x][f % side]) * in[f * in_pitch + t];
        }
        lines[y * line_pitch + m * t + x] = sum;
      }
    }
  }
}

template <const WinogradMatrices& matrices>
void winograd_weights_reference(const float* in, int64_t channels, float* out, int64_t out_pitch) noexcept {
  constexpr int64_t side = matrices.side();
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t f = 0; f < matrices.frequencies(); ++f) {
      double sum = 0;
      for (int64_t tap = 0; tap < 9; ++tap) {
        sum += matrices.weights[f / side][tap / 3] * matrices.weights[f % side][tap % 3] * in[c * 9 + tap];
      }
      out[f * out_pitch + c] = static_cast<float>(sum);
    }
  }
}

template <const WinogradMatrices& matrices>
constexpr WinogradKernels kWinogradReference = {.input = &winograd_input_reference<matrices>,
                                                .output = &winograd_output_reference<matrices>,
                                                .weights = &winograd_weights_reference<matrices>};

void table_build_reference(const float* codebook, int64_t centroids, int64_t dim, const float* panel, int64_t pixels,
                           float* table) noexcept {
  for (int64_t k = 0; k < centroids; ++k) {
    for (int64_t p = 0; p < pixels; ++p) {
      float sum = 0;
      for (int64_t i = 0; i < dim; ++i) sum += codebook[k * dim + i] * panel[i * kTableColumns + p];
      table[k * kTableColumns + p] = sum;
    }
  }
}

void table_sum_reference(const uint16_t* at, int64_t positions, const float* tables, float* sums, int64_t outputs,
                         int64_t pixels, bool accumulate) noexcept {
  constexpr int64_t kStep = kTableStep / sizeof(float);
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t p = 0; p < pixels; ++p) {
      float sum = accumulate ? sums[o * kTableColumns + p] : 0;
      for (int64_t q = 0; q < positions; ++q) sum += tables[at[o * positions + q] * kStep + p];
      sums[o * kTableColumns + p] = sum;
    }
  }
}

void sparse_sum_reference(const Sparse<float>* weights, const int32_t* begin, const float* panel, float* sums,
                          int64_t outputs, int64_t pixels, bool accumulate) noexcept {
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t p = 0; p < pixels; ++p) {
      float sum = accumulate ? sums[o * kSparsePixels + p] : 0;
      for (int64_t n = begin[o]; n < begin[o + 1]; ++n) sum += weights[n].value * panel[weights[n].at + p];
      sums[o * kSparsePixels + p] = sum;
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

void sigmoid_reference(float* values, int64_t count) noexcept {
  for (int64_t i = 0; i < count; ++i) values[i] = 1.0f / (1.0f + std::exp(-values[i]));
}

void silu_reference(float* values, int64_t count) noexcept {
  for (int64_t i = 0; i < count; ++i) values[i] /= 1.0f + std::exp(-values[i]);
}

float gate(float x) {
  x += 3.0f;
  // Written so that a NaN fails both comparisons and stays.
  if (x < 0.0f) x = 0.0f;
  if (x > 6.0f) x = 6.0f;
  return x / 6.0f;
}

void hardsigmoid_reference(float* values, int64_t count) noexcept {
  for (int64_t i = 0; i < count; ++i) values[i] = gate(values[i]);
}

void hardswish_reference(float* values, int64_t count) noexcept {
  for (int64_t i = 0; i < count; ++i) values[i] *= gate(values[i]);
}

void max_row_reference(const float* in, int64_t step, float* out, int64_t count) noexcept {
  for (int64_t p = 0; p < count; ++p) {
    const float value = in[p * step];
    if (value > out[p] || std::isnan(value)) out[p] = value;
  }
}

void decode_words_reference(const uint16_t* codes, int64_t code_pitch, const uint32_t* codebook, int64_t dim,
                            uint32_t* out, int64_t out_pitch, int64_t rows, int64_t blocks) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < blocks; ++j) {
      std::copy_n(codebook + codes[r * code_pitch + j], dim, out + r * out_pitch + j * dim);
    }
  }
}

void decode_pairs_reference(const int8_t* bytes, uint32_t* out, int64_t pairs) noexcept {
  const auto half_of = [](int8_t byte) { return std::bit_cast<uint32_t>(static_cast<float>(byte)) >> 16; };
  for (int64_t k = 0; k < pairs; ++k) out[k] = half_of(bytes[2 * k]) | half_of(bytes[2 * k + 1]) << 16;
}

void split_reference(const float* in, int64_t in_pitch, int64_t rows, int64_t pixels, uint32_t* out, int64_t out_pitch,
                     int64_t piece_pitch) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < pixels; ++p) {
      float rest = in[r * in_pitch + p];
      for (int64_t i = 0; i < kPieces; ++i) {
        const uint32_t half = std::bit_cast<uint32_t>(rest) >> 16;
        rest -= std::bit_cast<float>(half << 16);
        uint32_t& pair = out[i * piece_pitch + r / 2 * out_pitch + p];
        pair = r % 2 == 0 ? half : pair | half << 16;
      }
    }
  }
}

void matrix_tile_reference(const uint32_t* weights, int64_t weights_pitch, int64_t weights_piece, int64_t weight_pieces,
                           const uint32_t* inputs, int64_t inputs_pitch, int64_t inputs_piece, int64_t steps,
                           float* out, int64_t out_pitch, int64_t rows, int64_t pixels) noexcept {
  const auto value = [](uint32_t pair, int64_t half) {
    return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xffff0000);
  };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < pixels; ++p) {
      float sum = 0;
      for (int64_t k = 0; k < 2 * kMatrixWords * steps; ++k) {
        for (int64_t i = 0; i < weight_pieces; ++i) {
          const float weight = value(weights[i * weights_piece + r * weights_pitch + k / 2], k % 2);
          for (int64_t j = 0; i + j < kPieces; ++j) {
            sum += weight * value(inputs[j * inputs_piece + k / 2 * inputs_pitch + p], k % 2);
          }
        }
      }
      out[r * out_pitch + p] = sum;
    }
  }
}

void nothing() noexcept {}

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
  KernelTable table = with_reference_bytes({});
  table.isa = "reference";
  table.lanes = 1;
  table.lanes8 = 1;
  table.tile = {.rows = kTileRows, .pixels = 16, .least_vectors = 1, .step_cost = 1};
  table.table_pixels = kTableColumns;
  table.pack_rows = &pack_rows_reference;
  table.gemm_tile = &gemm_tile_reference;
  table.decode_rows = &decode_rows_reference;
  table.decode_bytes = &decode_bytes_reference;
  table.dot_rows = &dot_rows_reference;
  table.winograd2 = kWinogradReference<kWinograd2x2>;
  table.winograd4 = kWinogradReference<kWinograd4x4>;
  table.table_build = &table_build_reference;
  table.table_sum = &table_sum_reference;
  table.sparse_sum = &sparse_sum_reference;
  table.finish_tile = &finish_tile_reference;
  table.curves = {.sigmoid = &sigmoid_reference,
                  .silu = &silu_reference,
                  .hardsigmoid = &hardsigmoid_reference,
                  .hardswish = &hardswish_reference};
  table.max_row = &max_row_reference;
  table.matrix.begin = &nothing;
  table.matrix.end = &nothing;
  table.matrix.decode_words = &decode_words_reference;
  table.matrix.decode_pairs = &decode_pairs_reference;
  table.matrix.tile = table.tile;
  table.matrix.split = &split_reference;
  table.matrix.multiply = &matrix_tile_reference;
  table.peak = &peak_reference;
  return table;
}

}  // namespace pyquant
