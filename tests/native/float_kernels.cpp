// The tests of the kernels that compute with floats.
#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "kernel_tests.h"
#include "pieces.h"
#include "winograd_runs.h"

namespace pyquant {
namespace {

constexpr int64_t kDims[] = {1, 2, 3, 4, 8, 9, 18};
constexpr int64_t kCentroids = 19;

void test_pack_rows(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t step : {1, 2, 3}) {
    for (const int64_t size : kAwkward) {
      begin_case({{"step", step}, {"size", size}});
      const int64_t plane = 1 + (size - 1) * step + 1, pitch = size + 8;
      // Any four bytes, a signalling NaN among them.
      Guarded<uint32_t> in = random.array<uint32_t>(3 * plane);
      in[2 * plane + 1] = 0x7fa00001;
      const PanelRun runs[] = {{.to = 0, .size = 2, .from = PanelRun::kOutside},
                               {.to = 3, .size = size, .from = 1},
                               {.to = size + 4, .size = 1, .from = 0},
                               {.to = size + 5, .size = 1, .from = PanelRun::kOutside}};
      const PanelRow rows[] = {{.row = 3, .channel = 0}, {.row = 1, .channel = 2}};
      const auto pack = [&](const KernelTable& kernels) {
        Guarded<uint32_t> panel(3 * pitch + size + 6, kUnsetOutput, kExact);
        kernels.pack_rows(runs, std::size(runs), step, in.data(), plane, rows, std::size(rows), 0xffb23456,
                          panel.data(), pitch);
        return panel;
      };
      const Guarded<uint32_t> got = pack(tested), expected = pack(reference);
      expect_rows(got, {1, got.size(), got.size(), got.size()}, dense(expected, 1, got.size(), got.size()));
    }
  }
}

void test_gemm_tile(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const auto gemm = [](const KernelTable& kernels) { return Gemm<float, float>{kernels.gemm_tile, kernels.tile}; };
  test_gemm(gemm(tested), gemm(reference), tested.lanes, random);
}

void test_decode_rows(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t dim : {1, 2, 3, 4, 5, 8, 9, 12, 16, 18, 25, 33, 36, 49}) {
    for (const auto& [rows, blocks] : {std::pair{1, 1}, {1, 7}, {3, 5}, {8, 16}}) {
      for (const int64_t books : {1, 2, 3}) {
        begin_case({{"dim", dim}, {"rows", rows}, {"blocks", blocks}, {"codebooks", books}});
        const int64_t code_pitch = blocks + 2;
        const Guarded<uint16_t> codes = random.codes(books * rows, blocks, code_pitch, kCentroids);
        const Guarded<float> values = random.array<float>(books * kCentroids * dim);
        const Codebooks codebooks{.values = values.data(), .codebooks = books, .centroids = kCentroids, .dim = dim};
        const Rows shape{rows, blocks * dim, blocks * dim + 3, blocks * dim + 3};
        const auto decode = [&](const KernelTable& kernels) {
          Guarded<float> out = output<float>(shape);
          kernels.decode_rows(codebooks, codes.data(), rows * code_pitch, code_pitch, out.data(), shape.pitch, rows,
                              blocks);
          return out;
        };
        expect_rows(decode(tested), shape, dense(decode(reference), rows, shape.count, shape.pitch));
      }
    }
  }
}

void test_decode_bytes(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t count : {1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 65, 577}) {
    begin_case({{"count", count}});
    const Guarded<int8_t> bytes = random.array<int8_t>(count);
    const Rows shape{1, count, count, count};
    const auto decode = [&](const KernelTable& kernels) {
      Guarded<float> out = output<float>(shape);
      kernels.decode_bytes(bytes.data(), 0.37f, out.data(), count);
      return out;
    };
    expect_rows(decode(tested), shape, dense(decode(reference), 1, count, count));
  }
}

void test_dot_rows(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t depth : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 577}) {
    for (const auto& [rows, columns] : {std::pair{1, 1}, {7, 3}, {8, 1}, {9, 2}, {17, 1}}) {
      begin_case({{"depth", depth}, {"rows", rows}, {"columns", columns}});
      const int64_t a_pitch = depth + 3, x_pitch = depth + 1;
      const Guarded<float> a = random.rows<float>(rows, depth, a_pitch);
      const Guarded<float> x = random.rows<float>(columns, depth, x_pitch);
      const Rows shape{rows, columns, columns, columns + 2};
      const auto dot = [&](const KernelTable& kernels) {
        Guarded<float> out = output<float>(shape, kExact);
        kernels.dot_rows(a.data(), a_pitch, x.data(), x_pitch, out.data(), shape.pitch, rows, columns, depth);
        return out;
      };
      const std::vector<float> expected = dense(dot(reference), rows, columns, shape.pitch);
      expect_rows(dot(tested), shape, expected, tolerance(expected, depth));
    }
  }
}

void test_winograd_input(const WinogradKernels& tested, const WinogradKernels& reference, int64_t lanes, int64_t m,
                         Random& random) {
  const int64_t frequencies = (m + 2) * (m + 2);
  for (const int64_t tiles : kAwkward) {
    for (const int64_t channels : {1, 3}) {
      for (const int64_t most : {int64_t{3}, tiles}) {
        begin_case({{"tiles", tiles}, {"channels", channels}, {"most", most}});
        const WinogradRuns runs(tiles, most, m, random);
        const Guarded<float> in = random.array<float>(channels * runs.plane);
        const int64_t written = round_up(tiles, lanes);
        const Rows shape{frequencies * channels, tiles, written, written + 3};
        const auto transform = [&](const WinogradKernels& kernels) {
          Guarded<float> out = output<float>(shape);
          kernels.input(in.data(), runs.plane, runs.runs.data(), runs.count(), channels, tiles, out.data(), shape.pitch,
                        channels * shape.pitch);
          return out;
        };
        const std::vector<float> expected = dense(transform(reference), shape.rows, tiles, shape.pitch);
        expect_rows(transform(tested), shape, expected, tolerance(expected, frequencies));
      }
    }
  }
}

void test_winograd_output(const WinogradKernels& tested, const WinogradKernels& reference, int64_t lanes, int64_t m,
                          Random& random) {
  const int64_t side = m + 2;
  for (const int64_t tiles : kAwkward) {
    begin_case({{"tiles", tiles}});
    const Guarded<float> in = random.rows<float>(side * side, tiles, tiles + 1);
    const Rows shape{m, m * tiles, m * round_up(tiles, lanes), m * round_up(tiles, lanes) + 3};
    const auto transform = [&](const WinogradKernels& kernels) {
      Guarded<float> out = output<float>(shape);
      kernels.output(in.data(), tiles + 1, tiles, out.data(), shape.pitch);
      return out;
    };
    const std::vector<float> expected = dense(transform(reference), m, m * tiles, shape.pitch);
    expect_rows(transform(tested), shape, expected, tolerance(expected, side * side));
  }
}

void test_winograd_weights(const WinogradKernels& tested, const WinogradKernels& reference, int64_t m, Random& random) {
  for (const int64_t channels : kAwkward) {
    begin_case({{"channels", channels}});
    const Guarded<float> in = random.array<float>(channels * 9);
    const Rows shape{(m + 2) * (m + 2), channels, channels, channels + 3};
    const auto transform = [&](const WinogradKernels& kernels) {
      Guarded<float> out = output<float>(shape);
      kernels.weights(in.data(), channels, out.data(), shape.pitch);
      return out;
    };
    const std::vector<float> expected = dense(transform(reference), shape.rows, channels, shape.pitch);
    expect_rows(transform(tested), shape, expected, tolerance(expected, 9));
  }
}

void test_winograd2_input(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_winograd_input(tested.winograd2, reference.winograd2, tested.lanes, 2, random);
}

void test_winograd2_output(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_winograd_output(tested.winograd2, reference.winograd2, tested.lanes, 2, random);
}

void test_winograd2_weights(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_winograd_weights(tested.winograd2, reference.winograd2, 2, random);
}

void test_winograd4_weights(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_winograd_weights(tested.winograd4, reference.winograd4, 4, random);
}

void test_winograd4_input(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_winograd_input(tested.winograd4, reference.winograd4, tested.lanes, 4, random);
}

void test_winograd4_output(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_winograd_output(tested.winograd4, reference.winograd4, tested.lanes, 4, random);
}

void test_table_build(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const int64_t pitch = tested.table_pixels, columns = reference.table_pixels;
  for (const int64_t dim : kDims) {
    for (const int64_t centroids : {1, 3, 16, 19}) {
      for (int64_t pixels = 1; pixels <= pitch; ++pixels) {
        begin_case({{"dim", dim}, {"centroids", centroids}, {"pixels", pixels}});
        const Guarded<float> codebook = random.array<float>(centroids * dim);
        const Guarded<float> panel = random.rows<float>(dim, pixels, pitch, kAligned);
        const Rows shape = table_rows(tested.lanes, pitch, centroids, pixels);
        Guarded<float> table = output<float>(shape, kAligned);
        tested.table_build(codebook.data(), centroids, dim, panel.data(), pixels, table.data());
        const std::vector<float> expected =
            in_pieces<float>(columns, centroids, pixels, [&](int64_t first, int64_t count, std::vector<float>& out) {
              const std::vector<float> part = columns_of(panel, pitch, first, columns);
              reference.table_build(codebook.data(), centroids, dim, part.data(), count, out.data());
            });
        expect_rows(table, shape, expected, tolerance(expected, dim));
      }
    }
  }
}

void test_table_sum(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const int64_t pitch = tested.table_pixels, columns = reference.table_pixels;
  for (const auto& [outputs, positions] : {std::pair{1, 1}, {2, 3}, {31, 4}, {3, 18}}) {
    for (const bool accumulate : {false, true}) {
      for (int64_t pixels = 1; pixels <= pitch; ++pixels) {
        begin_case({{"outputs", outputs}, {"positions", positions}, {"accumulate", accumulate}, {"pixels", pixels}});
        const Guarded<uint16_t> codes = random.codes(outputs, positions, positions, kCentroids);
        const Guarded<float> tables = random.rows<float>(positions * kCentroids, pixels, pitch, kAligned);
        const Guarded<float> start = random.rows<float>(outputs, pixels, pitch);
        const Rows shape = table_rows(tested.lanes, pitch, outputs, pixels);
        Guarded<float> sums = output<float>(shape, kAligned);
        if (accumulate) copy_rows(start, shape, sums);
        const auto at = [&](int64_t width) {
          return rows_of_tables(codes, positions, kCentroids, width * static_cast<int64_t>(sizeof(float)));
        };
        tested.table_sum(at(pitch).data(), positions, tables.data(), sums.data(), outputs, pixels, accumulate);
        const std::vector<float> expected =
            in_pieces<float>(columns, outputs, pixels, [&](int64_t first, int64_t count, std::vector<float>& out) {
              const std::vector<float> part = columns_of(tables, pitch, first, columns);
              if (accumulate) out = columns_of(start, pitch, first, columns);
              reference.table_sum(at(columns).data(), positions, part.data(), out.data(), outputs, count, accumulate);
            });
        expect_rows(sums, shape, expected);  // added up in the same order: the same bits
      }
    }
  }
}

void test_sparse_sum(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_sparse<float, float>(tested.sparse_sum, reference.sparse_sum, tested.lanes, random);
}

void test_finish_tile(const KernelTable& tested, const KernelTable& reference, Random& random) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr std::pair<float, float> kBounds[] = {
      {-1.0f, 1.25f}, {0.0f, 6.0f}, {0.0f, kInfinity}, {-kInfinity, kInfinity}};
  constexpr float kSpecial[] = {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity};
  constexpr int64_t kRows = 3;
  for (const int64_t count : kAwkward) {
    for (size_t bounds = 0; bounds < std::size(kBounds); ++bounds) {
      for (const bool with_residual : {false, true}) {
        begin_case({{"count", count}, {"bounds", static_cast<int64_t>(bounds)}, {"residual", with_residual}});
        const Rows shape{kRows, count, count, count + 2};
        const int64_t in_pitch = count + 1;
        Guarded<float> in = random.rows<float>(kRows, count, in_pitch, kExact);
        Guarded<float> residual = random.rows<float>(kRows, count, shape.pitch, kExact);
        const Guarded<float> scale = random.array<float>(kRows, kExact), bias = random.array<float>(kRows, kExact);
        for (const float special : kSpecial) {  // anywhere in a row, its last value included
          in[random.below(kRows) * in_pitch + random.below(count)] = special;
          residual[random.below(kRows) * shape.pitch + random.below(count)] = special;
        }
        in[(kRows - 1) * in_pitch + count - 1] = kSpecial[0];
        const auto finish = [&](const KernelTable& kernels) {
          Guarded<float> out = output<float>(shape, kExact);
          kernels.finish_tile(in.data(), in_pitch, scale.data(), bias.data(), with_residual ? residual.data() : nullptr,
                              kBounds[bounds].first, kBounds[bounds].second, out.data(), shape.pitch, kRows, count);
          return out;
        };
        const std::vector<float> expected = dense(finish(reference), kRows, count, shape.pitch);
        expect_rows(finish(tested), shape, expected, tolerance(expected, 3));
      }
    }
  }
}

void test_curve(CurveFn tested, CurveFn reference, Random& random) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int64_t count : kAwkward) {
    begin_case({{"count", count}});
    Guarded<float> in = random.array<float>(count, kExact);
    for (int64_t i = 0; i < count; ++i) in[i] *= 30.0f;
    in[random.below(count)] = kInfinity;
    in[count - 1] = std::numeric_limits<float>::quiet_NaN();
    const Rows shape{1, count, count, count};
    const auto curve = [&](CurveFn function) {
      Guarded<float> out = output<float>(shape, kExact);
      copy_rows(in, shape, out);
      function(out.data(), count);
      return out;
    };
    const std::vector<float> expected = dense(curve(reference), 1, count, count);
    expect_rows(curve(tested), shape, expected, tolerance(expected, 1));
  }
}

template <CurveFn CurveKernels::* curve>
void test_curve_of(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_curve(tested.curves.*curve, reference.curves.*curve, random);
}

void test_max_row(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t step : {1, 2, 3}) {
    for (const int64_t count : kAwkward) {
      begin_case({{"step", step}, {"count", count}});
      Guarded<float> in = random.array<float>((count - 1) * step + 1);
      Guarded<float> start = random.array<float>(count);
      in[random.below(count) * step] = std::numeric_limits<float>::quiet_NaN();
      start[random.below(count)] = std::numeric_limits<float>::quiet_NaN();
      const Rows shape{1, count, count, count};
      const auto max = [&](const KernelTable& kernels) {
        Guarded<float> out = output<float>(shape, kExact);
        copy_rows(start, shape, out);
        kernels.max_row(in.data(), step, out.data(), count);
        return out;
      };
      expect_rows(max(tested), shape, dense(max(reference), 1, count, count));
    }
  }
}

void test_peak(const KernelTable& tested, const KernelTable&, Random& random) {
  begin_case({});
  Guarded<float> sink = random.array<float>(kMostTilePixels, kExact);
  if (const int64_t macs = tested.peak(3, sink.data()); macs < tested.lanes) {
    throw Failure("expected at least a vector of multiply-adds per step, got " + std::to_string(macs));
  }
}

constexpr KernelTest kTests[] = {
    {"pack_rows", &test_pack_rows},
    {"gemm_tile", &test_gemm_tile},
    {"decode_rows", &test_decode_rows},
    {"decode_bytes", &test_decode_bytes},
    {"dot_rows", &test_dot_rows},
    {"winograd2.input", &test_winograd2_input},
    {"winograd2.output", &test_winograd2_output},
    {"winograd2.weights", &test_winograd2_weights},
    {"winograd4.weights", &test_winograd4_weights},
    {"winograd4.input", &test_winograd4_input},
    {"winograd4.output", &test_winograd4_output},
    {"table_build", &test_table_build},
    {"table_sum", &test_table_sum},
    {"sparse_sum", &test_sparse_sum},
    {"finish_tile", &test_finish_tile},
    {"curves.sigmoid", &test_curve_of<&CurveKernels::sigmoid>},
    {"curves.silu", &test_curve_of<&CurveKernels::silu>},
    {"curves.hardsigmoid", &test_curve_of<&CurveKernels::hardsigmoid>},
    {"curves.hardswish", &test_curve_of<&CurveKernels::hardswish>},
    {"max_row", &test_max_row},
    {"peak", &test_peak},
};

}  // namespace

std::span<const KernelTest> float_kernel_tests() { return kTests; }

}  // namespace pyquant
