// What the reference computes for tiles and table rows of another table's size: it does so in pieces of its own size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#include "check.h"
#include "kernels/kernels.h"

namespace pyquant {

// The second weight of each pair is made so small that products of both fit 16 bits.
inline uint32_t fitting(uint32_t quad) {
  uint32_t result = 0;
  for (const int shift : {0, 16}) {
    const int first = static_cast<int8_t>(quad >> shift & 0xff),
              second = static_cast<int8_t>(quad >> shift >> 8 & 0xff);
    const int smaller = std::clamp(second, -kMostPair - first, kMostPair - first);
    result |= static_cast<uint32_t>((smaller & 0xff) << 8 | (first & 0xff)) << shift;
  }
  return result;
}

// gemm_tile of a table, or its gemm_tile8.
template <typename Weight, typename Sum>
struct Gemm {
  using RunFn = void (*)(const uint16_t* at, const Weight* codebook, int64_t dim, int64_t blocks, const Weight* panel,
                         const int32_t* rows, Sum* out, int64_t out_pitch, int64_t pixels) noexcept;
  RunFn run;
  Tile tile;

  // The product [tile_rows, pixels] with weights at [blocks, tile_rows].
  std::vector<Sum> in_pieces(const uint16_t* at, int64_t tile_rows, const Weight* codebook, int64_t dim, int64_t blocks,
                             const Weight* panel, const int32_t* rows, int64_t pixels) const {
    std::vector<Sum> expected(static_cast<size_t>(tile_rows * pixels));
    std::vector<uint16_t> part(static_cast<size_t>(blocks * tile.rows));
    std::vector<Sum> out(static_cast<size_t>(tile.rows * tile.pixels));
    for (int64_t row = 0; row < tile_rows; row += tile.rows) {
      const int64_t num_rows = std::min(tile.rows, tile_rows - row);
      for (int64_t j = 0; j < blocks; ++j)
        std::copy_n(at + j * tile_rows + row, num_rows, part.begin() + j * tile.rows);
      for (int64_t pixel = 0; pixel < pixels; pixel += tile.pixels) {
        const int64_t count = std::min(tile.pixels, pixels - pixel);
        run(part.data(), codebook, dim, blocks, panel + pixel, rows, out.data(), tile.pixels, count);
        for (int64_t r = 0; r < num_rows; ++r) {
          std::copy_n(out.begin() + r * tile.pixels, count, expected.begin() + (row + r) * pixels + pixel);
        }
      }
    }
    return expected;
  }
};

// Tiles of every width, of weights that are found in a codebook and of a matrix, blocks = 0; `fitting` makes of any
// weight one that may be multiplied.
template <typename Weight, typename Sum, typename Fitting = std::identity>
void test_gemm(const Gemm<Weight, Sum>& tested, const Gemm<Weight, Sum>& reference, int64_t lanes, Random& random,
               const Fitting& fitting = {}) {
  constexpr int64_t kCentroids = 19;
  const int64_t tile_rows = tested.tile.rows, most = tested.tile.pixels;
  for (const int64_t dim : {1, 2, 3, 4, 8, 9, 18}) {
    for (const int64_t any_blocks : {0, 1, 2, 7, 33}) {
      const bool is_matrix = any_blocks == 0;
      const int64_t blocks = is_matrix ? 1 : any_blocks, depth = dim * blocks;
      Guarded<Weight> codebook = random.array<Weight>((is_matrix ? tile_rows : kCentroids) * dim);
      for (int64_t i = 0; i < codebook.size(); ++i) codebook[i] = fitting(codebook[i]);
      Guarded<uint16_t> at = random.codes(1, blocks * tile_rows, blocks * tile_rows, kCentroids);
      for (int64_t i = 0; i < at.size(); ++i) at[i] = static_cast<uint16_t>((is_matrix ? i : at[i]) * dim);
      const Guarded<Weight> whole_panel = random.rows<Weight>(depth, most, most);
      std::vector<Sum> whole;  // of all pixels
      for (int64_t pixels = most; pixels > 0; --pixels) {
        begin_case({{"dim", dim}, {"blocks", any_blocks}, {"pixels", pixels}});
        const int64_t pitch = pixels + 3;
        Guarded<Weight> panel((depth - 1) * pitch + pixels, kUnsetInput);
        // Rows lie in any order.
        std::vector<int32_t> rows = rows_apart(depth, pitch);
        std::reverse(rows.begin(), rows.end());
        for (int64_t k = 0; k < depth; ++k)
          std::copy_n(&whole_panel[k * most], pixels, &panel[rows[static_cast<size_t>(k)]]);
        const Rows shape{tile_rows, pixels, round_up(pixels, lanes), most + 5};
        Guarded<Sum> out = output<Sum>(shape);
        tested.run(is_matrix ? nullptr : at.data(), codebook.data(), dim, blocks, panel.data(), rows.data(), out.data(),
                   shape.pitch, pixels);
        const std::vector<Sum> expected =
            reference.in_pieces(at.data(), tile_rows, codebook.data(), dim, blocks, panel.data(), rows.data(), pixels);
        double allowed = 0;
        if constexpr (std::is_floating_point_v<Sum>) allowed = tolerance(expected, depth);
        expect_rows(out, shape, expected, allowed);
        if (whole.empty()) whole = dense(out, shape.rows, pixels, shape.pitch);
        std::vector<Sum> part;
        for (int64_t r = 0; r < shape.rows; ++r) {
          part.insert(part.end(), whole.begin() + r * most, whole.begin() + r * most + pixels);
        }
        expect_rows(out, shape, part);  // the same bits however pixels are split
      }
    }
  }
}

// Columns [first, first + columns) of rows that are table rows of another table, or fewer where the rows end.
template <typename T>
std::vector<T> columns_of(const Guarded<T>& rows, int64_t pitch, int64_t first, int64_t columns) {
  std::vector<T> part(static_cast<size_t>(ceil_div(rows.size(), pitch) * columns));
  for (int64_t i = 0; i < static_cast<int64_t>(part.size()); ++i) {
    if (first + i % columns < pitch) part[static_cast<size_t>(i)] = rows[i / columns * pitch + first + i % columns];
  }
  return part;
}

// Call compute(first pixel, pixels, out) for pieces of as many columns as a table row of the reference has; its out
// [rows, columns] are the columns of what is returned, [rows, pixels].
template <typename T, typename Compute>
std::vector<T> in_pieces(int64_t columns, int64_t rows, int64_t pixels, const Compute& compute) {
  std::vector<T> expected(static_cast<size_t>(rows * pixels));
  for (int64_t first = 0; first < pixels; first += columns) {
    const int64_t count = std::min(columns, pixels - first);
    std::vector<T> out(static_cast<size_t>(rows * columns));
    compute(first, count, out);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(out.begin() + r * columns, count, expected.begin() + r * pixels + first);
    }
  }
  return expected;
}

// Where the rows begin that codes [outputs, positions] name of tables [positions, centroids, row].
inline Guarded<uint16_t> rows_of_tables(const Guarded<uint16_t>& codes, int64_t positions, int64_t centroids,
                                        int64_t row_bytes) {
  Guarded<uint16_t> at(codes.size(), kUnsetInput);
  for (int64_t i = 0; i < codes.size(); ++i) {
    at[i] = static_cast<uint16_t>((i % positions * centroids + codes[i]) * row_bytes / kTableStep);
  }
  return at;
}

// sparse_sum of a table, or its sparse_sum8: outputs without any weight, and of up to 18, in any order.
template <typename Weight, typename Sum, typename SumFn>
void test_sparse(SumFn tested, SumFn reference, int64_t lanes, Random& random) {
  constexpr int64_t kRows = 7;
  for (const int64_t outputs : {1, 2, 19}) {
    for (const bool accumulate : {false, true}) {
      for (int64_t pixels = 1; pixels <= kSparsePixels; ++pixels) {
        begin_case({{"outputs", outputs}, {"accumulate", accumulate}, {"pixels", pixels}});
        std::vector<int32_t> begin = {0};
        for (int64_t o = 0; o < outputs; ++o)
          begin.push_back(begin.back() + static_cast<int32_t>((o * 7 + pixels) % 19));
        Guarded<Sparse<Weight>> weights(begin.back(), kUnsetInput, kExact);
        for (int64_t n = 0; n < weights.size(); ++n) {
          weights[n] = {.value = random.value<Weight>(),
                        .at = static_cast<int32_t>(random.below((kRows - 1) * kSparsePixels + 1))};
        }
        const Guarded<Weight> panel = random.array<Weight>(kRows * kSparsePixels, kAligned);
        Guarded<Sum> start = random.rows<Sum>(outputs, pixels, kSparsePixels);
        if constexpr (!std::is_floating_point_v<Sum>) {
          for (int64_t i = 0; i < start.size(); ++i) start[i] /= 2;  // sums fit int32_t
        }
        const Rows shape{outputs, pixels, round_up(pixels, lanes), kSparsePixels};
        const auto sum = [&](SumFn run) {
          Guarded<Sum> sums = output<Sum>(shape, kAligned);
          if (accumulate) copy_rows(start, shape, sums);
          run(weights.data(), begin.data(), panel.data(), sums.data(), outputs, pixels, accumulate);
          return sums;
        };
        const std::vector<Sum> expected = dense(sum(reference), outputs, pixels, kSparsePixels);
        double allowed = 0;
        if constexpr (std::is_floating_point_v<Sum>) allowed = tolerance(expected, 19);
        expect_rows(sum(tested), shape, expected, allowed);
      }
    }
  }
}

// Rows of sums or of a table, `columns` long, of which kernels write pairs of vectors.
inline Rows table_rows(int64_t lanes, int64_t columns, int64_t rows, int64_t pixels) {
  return {rows, pixels, std::min(round_up(pixels, 2 * lanes), columns), columns};
}

}  // namespace pyquant
