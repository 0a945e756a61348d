// The plain C++ kernels that compute with integers; part of reference.h.
#include <algorithm>
#include <cmath>

#include "base/sizes.h"
#include "kernels/reference.h"
#include "kernels/winograd.h"

namespace pyquant {
namespace {

constexpr int64_t kTableColumns = 8;
constexpr int64_t kTileRows = 4;
constexpr int64_t kTilePixels = 16;

// Byte i of a quad.
uint32_t byte_of(uint32_t quad, int64_t i) { return quad >> (8 * i) & 0xff; }

// Weights are signed, inputs unsigned.
int32_t dot(uint32_t weights, uint32_t inputs) {
  int32_t sum = 0;
  for (int64_t i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(byte_of(weights, i)) * static_cast<int32_t>(byte_of(inputs, i));
  }
  return sum;
}

// Written so that a NaN becomes 0.
uint32_t rounded(float value) {
  if (!(value > 0.0f)) value = 0.0f;
  if (value > 255.0f) value = 255.0f;
  return static_cast<uint32_t>(std::nearbyint(value));
}

void gemm_tile8_reference(const uint16_t* at, const uint32_t* codebook, int64_t dim, int64_t blocks,
                          const uint32_t* panel, const int32_t* rows, int32_t* out, int64_t out_pitch,
                          int64_t pixels) noexcept {
  for (int64_t r = 0; r < kTileRows; ++r) {
    for (int64_t p = 0; p < pixels; ++p) {
      int32_t sum = 0;
      for (int64_t j = 0; j < blocks; ++j) {
        const uint32_t* centroid = codebook + (at == nullptr ? r * dim : at[j * kTileRows + r]);
        for (int64_t i = 0; i < dim; ++i) sum += dot(centroid[i], panel[rows[j * dim + i] + p]);
      }
      out[r * out_pitch + p] = sum;
    }
  }
}

void dot_rows8_reference(const uint32_t* weights, int64_t pitch, const uint32_t* inputs, int64_t depth, int32_t* out,
                         int64_t out_pitch, int64_t rows) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    int32_t sum = 0;
    for (int64_t k = 0; k < depth; ++k) sum += dot(weights[r * pitch + k], inputs[k]);
    out[r * out_pitch] = sum;
  }
}

// A vector is one tile.
void winograd_input8_reference(const uint32_t* in, int64_t plane, const WinogradRun* run, int64_t num_runs,
                               int64_t quads, uint8_t zero, const float* units, uint32_t* /*columns*/, uint32_t* out,
                               int64_t out_pitch, int64_t out_step, float* scales, float* mean_of) noexcept {
  constexpr int64_t side = kWinograd8Side;
  constexpr auto& matrix = kWinograd2x2.input;
  const auto input = [&](int64_t k, int64_t y, int64_t x) {
    const bool outside = num_runs == 0 || run->from[y] == WinogradRun::kOutside || x < run->begin || x >= run->end;
    if (outside) return static_cast<int32_t>(zero);
    return static_cast<int32_t>(byte_of(in[k / 4 * plane + run->from[y] + x], k % 4));
  };
  const auto transformed = [&](int64_t f, int64_t k) {
    double sum = 0;
    for (int64_t y = 0; y < side; ++y) {
      for (int64_t x = 0; x < side; ++x) sum += matrix[f / side][y] * matrix[f % side][x] * (input(k, y, x) - zero);
    }
    return static_cast<int32_t>(sum);
  };
  int32_t sum = 0;
  for (int64_t k = 0; k < 4 * quads; ++k) sum += transformed(kWinograd8Mean, k);
  *mean_of = std::nearbyint(static_cast<float>(sum) / static_cast<float>(4 * quads));
  for (int64_t f = 0; f < side * side; ++f) {
    const auto frequency = [&](int64_t k) {
      return transformed(f, k) - (f == kWinograd8Mean ? static_cast<int32_t>(*mean_of) : 0);
    };
    int32_t range = 127;
    for (int64_t k = 0; k < 4 * quads; ++k) range = std::max(range, std::abs(frequency(k)));
    const float quotient = 127.0f * 32768.0f / static_cast<float>(range);
    const auto factor = static_cast<int32_t>(std::nearbyint(std::min(quotient, 32767.0f)));
    scales[f * out_step] = static_cast<float>(range) * units[f];
    for (int64_t c = 0; c < quads; ++c) {
      uint32_t quad = 0;
      for (int64_t i = 0; i < 4; ++i) {
        const int32_t scaled = 128 + ((frequency(4 * c + i) * factor + (1 << 14)) >> 15);
        quad |= static_cast<uint32_t>(scaled) << (8 * i);
      }
      out[f * out_step + c * out_pitch] = quad;
    }
  }
}

void winograd_multiply8_reference(const uint32_t* weights, const int32_t* start, int64_t quads, const uint32_t* panel,
                                  int64_t panel_step, const int32_t* rows, int32_t* out, int64_t tiles) noexcept {
  constexpr int64_t side = kWinograd8Side;
  for (int64_t f = 0; f < side * side; ++f) {
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t t = 0; t < tiles; ++t) {
        int32_t sum = start[f * kTileRows + r];
        for (int64_t c = 0; c < quads; ++c) {
          const uint32_t quad = weights[((f / side * kTileRows + r) * quads + c) * side + f % side];
          sum += dot(quad, panel[f * panel_step + rows[c] + t]);
        }
        out[(f * kTileRows + r) * kTilePixels + t] = sum;
      }
    }
  }
}

void winograd_output8_reference(const int32_t* in, const float* scales, int64_t scales_pitch, const float* mean_of,
                                const float* sums, int64_t rows, int64_t tiles, int32_t* lines,
                                int64_t line_pitch) noexcept {
  constexpr int64_t side = kWinograd8Side;
  for (int64_t i = 0; i < rows * tiles; ++i) {
    const int64_t r = i / tiles, t = i % tiles;
    float p[2][side];
    for (int64_t x = 0; x < side; ++x) {
      float value[side], scale[side];
      for (int64_t y = 0; y < side; ++y) {
        value[y] = static_cast<float>(in[((y * side + x) * kTileRows + r) * kTilePixels + t]);
        scale[y] = scales[(y * side + x) * scales_pitch + t];
      }
      float second = value[1] * scale[1];
      if (side + x == kWinograd8Mean) {
        const float mean = mean_of[t] * sums[r];
        second = std::fma(value[1], scale[1], mean);
      }
      p[0][x] = std::fma(value[0], scale[0], std::fma(value[2], scale[2], second));
      p[1][x] = std::fma(value[3], scale[3], std::fma(-value[2], scale[2], second));
    }
    for (int64_t y = 0; y < 2; ++y) {
      int32_t* const to = lines + (y * kTileRows + r) * line_pitch + 2 * t;
      to[0] = static_cast<int32_t>(std::nearbyint(p[y][0] + (p[y][1] + p[y][2])));
      to[1] = static_cast<int32_t>(std::nearbyint(p[y][3] + (p[y][1] - p[y][2])));
    }
  }
}

void matrix_tile8_reference(const uint32_t* weights, int64_t weights_pitch, const uint32_t* panel, int64_t panel_pitch,
                            const int32_t* at, int64_t steps, int32_t* out, int64_t out_pitch, int64_t rows,
                            int64_t pixels) noexcept {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < pixels; ++p) {
      int32_t sum = 0;
      for (int64_t k = 0; k < steps * kMatrixWords; ++k) {
        const int64_t row = at[k / kMatrixWords] + k % kMatrixWords * panel_pitch;
        sum += dot(weights[r * weights_pitch + k], panel[row + p]);
      }
      out[r * out_pitch + p] = sum;
    }
  }
}

void finish_tile8_reference(const int32_t* in, int64_t in_pitch, const Finish8& finish, uint32_t* out,
                            int64_t out_pitch, int64_t rows, int64_t count) noexcept {
  for (int64_t c = 0; c < rows / 4; ++c) {
    for (int64_t p = 0; p < count; ++p) {
      uint32_t quad = 0;
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t r = 4 * c + i;
        float value = std::fma(static_cast<float>(in[r * in_pitch + p]), finish.scale[r], finish.bias[r]);
        if (finish.residual != nullptr) {
          const auto byte = static_cast<float>(byte_of(finish.residual[c * out_pitch + p], i));
          value = std::fma(byte, finish.residual_scale, value);
        }
        quad |= std::clamp<uint32_t>(rounded(value), finish.low, finish.high) << (8 * i);
      }
      out[c * out_pitch + p] = quad;
    }
  }
}

// The distance of each byte from that of `zeros`.
uint32_t distances(uint32_t quad, uint32_t zeros) {
  uint32_t result = 0;
  for (int64_t i = 0; i < 4; ++i) {
    const uint32_t byte = byte_of(quad, i), zero = byte_of(zeros, i);
    result |= (byte > zero ? byte - zero : zero - byte) << (8 * i);
  }
  return result;
}

void shuffle_tile8_reference(const ShuffledCodebooks& codebooks, const uint8_t* places, int64_t outputs,
                             const uint32_t* panel, uint32_t zeros, int64_t pixels, void*, int32_t* out,
                             const FinishedTile8* tile) noexcept {
  constexpr int64_t pitch = kShuffledPixels;
  const int64_t dim = codebooks.dim, shift = codebooks.shift, together = codebooks.together();
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t o = 0; o < outputs; ++o) out[o * pitch + p] = 0;
    for (int64_t q = 0; q < codebooks.blocks * codebooks.codebooks; ++q) {
      const int64_t m = q % codebooks.codebooks;
      const uint32_t* const inputs = panel + q / codebooks.codebooks * dim * pitch + p;
      int32_t bound = 0;
      for (int64_t f = 0; f < codebooks.families(); ++f) {
        const uint32_t* const bounds = codebooks.bounds + (m * codebooks.families() + f) * dim;
        int32_t of_family = 0;
        for (int64_t i = 0; i < dim; ++i) of_family += dot(bounds[i], distances(inputs[i * pitch], zeros));
        bound = std::max(bound, of_family);
      }
      const int32_t scale = (bound >> (shift + 7)) + 1;
      int32_t entries[ShuffledCodebooks::kShuffledBytes];  // by place
      for (int64_t k = 0; k < codebooks.entries; ++k) {
        int32_t product = (1 << (shift - 1)) / 2;
        for (int64_t i = 0; i < dim; ++i) {
          const uint32_t weights = codebooks.quads[(m * dim + i) * codebooks.entries + k];
          product += dot(weights, inputs[i * pitch]) - dot(weights, zeros);
        }
        const int32_t entry = ((product >> (shift - 1)) * shuffled_factor(scale) + (1 << 14)) >> 15;
        entries[shuffled_place(codebooks.entries, q % together, k)] = std::clamp(entry, -128, 127);
      }
      for (int64_t o = 0; o < outputs; ++o) {
        out[o * pitch + p] += scale * entries[places[place_at(codebooks, o, q)]];
      }
    }
  }
  if (tile != nullptr) {
    finish_tile8_reference(out, pitch, tile->finish, tile->out, tile->out_pitch, tile->rows, pixels);
  }
}

void sparse_sum8_reference(const Sparse<uint32_t>* weights, const int32_t* begin, const uint32_t* panel, int32_t* sums,
                           int64_t outputs, int64_t pixels, bool accumulate) noexcept {
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t p = 0; p < pixels; ++p) {
      int32_t sum = accumulate ? sums[o * kSparsePixels + p] : 0;
      for (int64_t n = begin[o]; n < begin[o + 1]; ++n) sum += dot(weights[n].value, panel[weights[n].at + p]);
      sums[o * kSparsePixels + p] = sum;
    }
  }
}

void decode_quads_reference(const ByteCentroids& centroids, const uint16_t* codes, int64_t codes_step,
                            int64_t code_pitch, const int32_t* begin, uint32_t* out, int64_t out_pitch, int64_t rows,
                            int64_t groups) noexcept {
  const int64_t quads = centroids.quads(), width = centroids.width();
  const auto byte = [&](int64_t r, int64_t g, int64_t channel, int64_t tap) {
    int32_t sum = kPart / 2;
    for (int64_t m = 0; m < centroids.codebooks; ++m) {
      const int64_t block = g * centroids.n() + channel / centroids.channels;
      const int64_t centroid = m * centroids.centroids + codes[m * codes_step + r * code_pitch + block];
      const int64_t at = (centroid * centroids.channels + channel % centroids.channels) * width + tap;
      sum += centroids.codebooks == 1 ? kPart * centroids.bytes[at] : centroids.parts[at];
    }
    return static_cast<uint32_t>(sum >> kPartBits) & 0xff;
  };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t q = 0; q < quads; ++q) {
        for (int64_t y = 0; y < centroids.rows; ++y) {
          for (int64_t x = 0; x < centroids.columns; ++x) {
            uint32_t quad = 0;
            for (int64_t i = 0; i < kQuad; ++i) {
              quad |= byte(r, g, kQuad * q + i, y * centroids.row_width() + x) << (8 * i);
            }
            out[r * out_pitch + begin[y] + (g * quads + q) * centroids.columns + x] = quad;
          }
        }
      }
    }
  }
}

void turn_quads_reference(const uint32_t* in, const int32_t* at, int64_t taps, int64_t pixels, uint32_t* out,
                          int64_t pitch) noexcept {
  const int64_t groups = ceil_div(taps, 4);
  for (int64_t c = 0; c < 4; ++c) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t p = 0; p < pixels; ++p) {
        uint32_t quad = 0;
        for (int64_t i = 0; i < 4 && 4 * g + i < taps; ++i) quad |= byte_of(in[at[4 * g + i] + p], c) << (8 * i);
        out[(c * groups + g) * pitch + p] = quad;
      }
    }
  }
}

void table_build8_reference(const uint32_t* codebook, int64_t centroids, int64_t dim, const uint32_t* panel,
                            int64_t pixels, int64_t shift, int16_t* table) noexcept {
  for (int64_t k = 0; k < centroids; ++k) {
    for (int64_t p = 0; p < pixels; ++p) {
      int32_t sum = 1 << shift >> 1;
      for (int64_t i = 0; i < dim; ++i) sum += dot(codebook[k * dim + i], panel[i * kTableColumns + p]);
      table[k * kTableColumns + p] = static_cast<int16_t>(sum >> shift);
    }
  }
}

void table_sum8_reference(const uint16_t* at, int64_t positions, const int16_t* tables, int32_t* sums, int64_t outputs,
                          int64_t pixels, bool accumulate) noexcept {
  constexpr int64_t kStep = kTableStep / sizeof(int16_t);
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t p = 0; p < pixels; ++p) {
      int32_t sum = accumulate ? sums[o * kTableColumns + p] : 0;
      for (int64_t q = 0; q < positions; ++q) sum += tables[at[o * positions + q] * kStep + p];
      sums[o * kTableColumns + p] = sum;
    }
  }
}

void quantize_reference(const float* in, int64_t in_pitch, int64_t rows, float inverse_scale, float zero, uint32_t* out,
                        int64_t count) noexcept {
  for (int64_t p = 0; p < count; ++p) {
    out[p] = 0;
    for (int64_t i = 0; i < 4; ++i) {
      const float value = i < rows ? std::fma(in[i * in_pitch + p], inverse_scale, zero) : zero;
      out[p] |= rounded(value) << (8 * i);
    }
  }
}

void dequantize_reference(const uint32_t* in, float scale, float zero, float* out, int64_t out_pitch, int64_t rows,
                          int64_t count) noexcept {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t p = 0; p < count; ++p) {
      out[i * out_pitch + p] = (static_cast<float>(byte_of(in[p], i)) - zero) * scale;
    }
  }
}

void max_row8_reference(const uint32_t* in, int64_t step, uint32_t* out, int64_t count) noexcept {
  for (int64_t p = 0; p < count; ++p) {
    uint32_t quad = 0;
    for (int64_t i = 0; i < 4; ++i) {
      const uint32_t before = byte_of(out[p], i), next = byte_of(in[p * step], i);
      quad |= (before > next ? before : next) << (8 * i);
    }
    out[p] = quad;
  }
}

}  // namespace

KernelTable with_reference_bytes(KernelTable table) {
  table.tile8 = {.rows = kTileRows, .pixels = kTilePixels, .least_vectors = 1, .step_cost = 1};
  table.table8_pixels = kTableColumns;
  table.gemm_tile8 = &gemm_tile8_reference;
  table.dot_rows8 = &dot_rows8_reference;
  table.matrix.tile8 = table.tile8;
  table.matrix.multiply8 = &matrix_tile8_reference;
  table.winograd8 = {.product_pitch = kTilePixels,
                     .input = &winograd_input8_reference,
                     .multiply = &winograd_multiply8_reference,
                     .output = &winograd_output8_reference};
  table.decode_quads = &decode_quads_reference;
  table.turn_quads = &turn_quads_reference;
  table.table_build8 = &table_build8_reference;
  table.table_sum8 = &table_sum8_reference;
  table.shuffles = true;
  table.dots_rows = false;
  table.shuffle_tile8 = &shuffle_tile8_reference;
  table.sparse_sum8 = &sparse_sum8_reference;
  table.finish_tile8 = &finish_tile8_reference;
  table.quantize = &quantize_reference;
  table.dequantize = &dequantize_reference;
  table.max_row8 = &max_row8_reference;
  return table;
}

}  // namespace pyquant
