// Tests of Winograd's F(2x2, 3x3) in integers.
#include <vector>

#include "check.h"
#include "kernel_tests.h"
#include "kernels/kernels.h"
#include "pieces.h"
#include "winograd_runs.h"

namespace pyquant {
namespace {

constexpr int64_t kSide = kWinograd8Side;
constexpr int64_t kFrequencies = kSide * kSide;

// Inputs of their whole range, of two values alone, which frequencies are the largest of, all outside, and all the
// same.
enum Inputs { kAny, kExtreme, kZeros, kSame };

void test_input(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const int64_t lanes = tested.lanes8;
  for (int64_t tiles = 0; tiles <= lanes; ++tiles) {
    for (const int64_t quads : {1, 3, 8}) {
      for (const Inputs inputs : {kAny, kExtreme, kZeros, kSame}) {
        begin_case({{"tiles", tiles}, {"quads", quads}, {"inputs", inputs}});
        const auto zero = static_cast<uint8_t>(tiles % 2 == 0 ? 0 : random.below(256));
        const WinogradRuns runs(tiles, random.below(2) == 0 ? lanes : 3, kSide - 2, random);
        Guarded<uint32_t> in = random.array<uint32_t>(quads * runs.plane);
        for (int64_t i = 0; i < in.size() && inputs != kAny; ++i) {
          in[i] = inputs == kSame ? 0xffffffffu : zero * 0x01010101u;
          for (int byte = 0; byte < 4 && inputs == kExtreme; ++byte) {
            in[i] = in[i] << 8 | (random.below(2) == 0 ? 0u : 255u);
          }
        }
        const Guarded<float> units = random.array<float>(kFrequencies);
        const Rows shape{kFrequencies * quads, lanes, lanes, lanes + 3};
        const Rows scale_shape{kFrequencies, lanes, lanes, quads * shape.pitch};
        const Rows mean_shape{1, lanes, lanes, lanes};
        Guarded<uint32_t> out = output<uint32_t>(shape), columns(quads * kWinograd8Columns * lanes, kUnsetOutput);
        Guarded<float> scales = output<float>(scale_shape), means = output<float>(mean_shape);
        tested.winograd8.input(in.data(), runs.plane, runs.runs.data(), runs.count(), quads, zero, units.data(),
                               columns.data(), out.data(), shape.pitch, quads * shape.pitch, scales.data(),
                               means.data());
        std::vector<uint32_t> expected(static_cast<size_t>(shape.rows * lanes));
        std::vector<float> all_scales(static_cast<size_t>(shape.rows * lanes)), expected_scales;
        std::vector<float> expected_means(static_cast<size_t>(lanes));
        for (int64_t t = 0; t < lanes; ++t) {
          WinogradRun of_tile{.tile = 0, .size = 1, .from = {}, .begin = 0, .end = 0};  // of no run: nothing is inside
          for (const WinogradRun& run : runs.runs) {
            const int64_t column = 2 * (t - run.tile);
            if (column < 0 || column >= 2 * run.size) continue;
            of_tile.begin = run.begin - column, of_tile.end = run.end - column;
            for (int64_t y = 0; y < kSide; ++y) {
              const bool outside = run.from[y] == WinogradRun::kOutside;
              of_tile.from[y] = outside ? WinogradRun::kOutside : run.from[y] + column;
            }
          }
          reference.winograd8.input(in.data(), runs.plane, &of_tile, 1, quads, zero, units.data(), nullptr,
                                    expected.data() + t, lanes, quads * lanes, all_scales.data() + t,
                                    expected_means.data() + t);
        }
        expect_rows(out, shape, expected);
        expect_rows(means, mean_shape, expected_means);
        for (int64_t f = 0; f < kFrequencies; ++f) {
          const auto from = all_scales.begin() + f * quads * lanes;
          expected_scales.insert(expected_scales.end(), from, from + lanes);
        }
        expect_rows(scales, scale_shape, expected_scales);
      }
    }
  }
}

// The reference's tiles have fewer rows and pixels.
void test_multiply(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const Tile tile = tested.tile8, some = reference.tile8;
  const int64_t product_pitch = tested.winograd8.product_pitch, some_pitch = reference.winograd8.product_pitch;
  for (const int64_t quads : {1, 2, 3, 4, 7, 33}) {
    for (int64_t tiles = 1; tiles <= tile.pixels; ++tiles) {
      begin_case({{"quads", quads}, {"tiles", tiles}});
      const int64_t pitch = tile.pixels + 1;
      Guarded<uint32_t> weights = random.array<uint32_t>(kFrequencies * tile.rows * quads);
      for (int64_t i = 0; tested.adds_in_pairs && i < weights.size(); ++i) weights[i] = fitting(weights[i]);
      Guarded<int32_t> start = random.array<int32_t>(kFrequencies * tile.rows);
      for (int64_t i = 0; i < start.size(); ++i) start[i] /= 2;  // so that no sum exceeds 32 bits
      const Guarded<uint32_t> panel = random.rows<uint32_t>(kFrequencies * quads, tiles, pitch);
      std::vector<int32_t> rows;
      for (int64_t c = 0; c < quads; ++c) rows.push_back(static_cast<int32_t>((quads - 1 - c) * pitch));
      const Rows shape{kFrequencies * tile.rows, tiles, round_up(tiles, tested.lanes8), product_pitch};
      Guarded<int32_t> out = output<int32_t>(shape);
      tested.winograd8.multiply(weights.data(), start.data(), quads, panel.data(), quads * pitch, rows.data(),
                                out.data(), tiles);
      std::vector<int32_t> expected(static_cast<size_t>(shape.rows * tiles));
      std::vector<int32_t> part(static_cast<size_t>(kFrequencies * some.rows * some_pitch));
      for (int64_t row = 0; row < tile.rows; row += some.rows) {
        std::vector<uint32_t> part_weights;
        std::vector<int32_t> part_start;
        for (int64_t y = 0; y < kSide; ++y) {
          const uint32_t* const from = weights.data() + (y * tile.rows + row) * quads * kSide;
          part_weights.insert(part_weights.end(), from, from + some.rows * quads * kSide);
        }
        for (int64_t f = 0; f < kFrequencies; ++f) {
          const int32_t* const from = start.data() + f * tile.rows + row;
          part_start.insert(part_start.end(), from, from + some.rows);
        }
        for (int64_t first = 0; first < tiles; first += some.pixels) {
          const int64_t count = std::min(some.pixels, tiles - first);
          reference.winograd8.multiply(part_weights.data(), part_start.data(), quads, panel.data() + first,
                                       quads * pitch, rows.data(), part.data(), count);
          for (int64_t i = 0; i < kFrequencies * some.rows; ++i) {
            const int64_t f = i / some.rows, r = row + i % some.rows;
            std::copy_n(part.begin() + i * some_pitch, count, expected.begin() + (f * tile.rows + r) * tiles + first);
          }
        }
      }
      expect_rows(out, shape, expected);
    }
  }
}

void test_output(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const Tile tile = tested.tile8, some = reference.tile8;
  const int64_t product_pitch = tested.winograd8.product_pitch, some_pitch = reference.winograd8.product_pitch;
  for (int64_t tiles = 1; tiles <= tile.pixels; ++tiles) {
    for (const int64_t rows : {int64_t{1}, tile.rows}) {
      begin_case({{"tiles", tiles}, {"rows", rows}});
      Guarded<int32_t> in = random.rows<int32_t>(kFrequencies * tile.rows, tiles, product_pitch);
      for (int64_t i = 0; i < in.size(); ++i) in[i] /= 64;  // so that no output exceeds 32 bits
      const int64_t scales_pitch = tiles + 2;
      const Guarded<float> scales = random.rows<float>(kFrequencies, tiles, scales_pitch);
      const Guarded<float> means = random.array<float>(tiles);
      Guarded<float> sums = random.array<float>(rows);
      for (int64_t r = 0; r < rows; ++r) sums[r] *= 1024;
      const int64_t written = 2 * round_up(tiles, tested.lanes8);
      const Rows shape{2 * tile.rows, 2 * tiles, written, written + 3};
      Guarded<int32_t> lines = output<int32_t>(shape), expected = output<int32_t>(shape);
      tested.winograd8.output(in.data(), scales.data(), scales_pitch, means.data(), sums.data(), rows, tiles,
                              lines.data(), shape.pitch);
      std::vector<int32_t> part(static_cast<size_t>(kFrequencies * some.rows * some_pitch));
      std::vector<int32_t> part_lines(static_cast<size_t>(2 * some.rows * 2));
      for (int64_t i = 0; i < rows * tiles; ++i) {
        const int64_t r = i / tiles, t = i % tiles;
        for (int64_t f = 0; f < kFrequencies; ++f) {
          part[static_cast<size_t>(f * some.rows * some_pitch)] = in[(f * tile.rows + r) * product_pitch + t];
        }
        reference.winograd8.output(part.data(), scales.data() + t, scales_pitch, means.data() + t, sums.data() + r, 1,
                                   1, part_lines.data(), 2);
        for (int64_t y = 0; y < 2; ++y) {
          const auto from = part_lines.begin() + y * some.rows * 2;
          std::copy_n(from, 2, expected.data() + (y * tile.rows + r) * shape.pitch + 2 * t);
        }
      }
      expect_rows(lines, shape, dense(expected, shape.rows, shape.count, shape.pitch));
    }
  }
}

constexpr KernelTest kTests[] = {
    {"winograd8.input", &test_input},
    {"winograd8.multiply", &test_multiply},
    {"winograd8.output", &test_output},
};

}  // namespace

std::span<const KernelTest> winograd8_kernel_tests() { return kTests; }

}  // namespace pyquant
