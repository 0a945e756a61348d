// The tests of the kernels that use a unit for matrices, where there is one.
#include <bit>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "kernel_tests.h"

namespace pyquant {
namespace {

constexpr int64_t kCentroids = 19;

float value_of(uint32_t pair, int64_t half) { return std::bit_cast<float>(half == 0 ? pair << 16 : pair & 0xffff0000); }

// Every number is the sum of its pieces; what is none has a piece that is none.
void test_split(const KernelTable& tested, const KernelTable& reference, Random& random) {
  constexpr float kSpecial[] = {0.0f,
                                -0.0f,
                                1.0f,
                                std::numeric_limits<float>::max(),
                                -std::numeric_limits<float>::min(),
                                std::numeric_limits<float>::infinity(),
                                -std::numeric_limits<float>::infinity(),
                                std::numeric_limits<float>::quiet_NaN()};
  const float nan_of_low_bits = std::bit_cast<float>(0x7f800001);
  for (const int64_t rows : {2, 4, 14}) {
    for (const int64_t pixels : kAwkward) {
      begin_case({{"rows", rows}, {"pixels", pixels}});
      const int64_t pitch = pixels + 3, writable = round_up(pixels, tested.lanes), out_pitch = writable + 5;
      Guarded<float> in = random.rows<float>(rows, pixels, pitch);
      for (size_t i = 0; i < std::size(kSpecial); ++i) {
        if (static_cast<int64_t>(i) < pixels) in[(i % rows) * pitch + i] = kSpecial[i];
      }
      if (pixels > 12) in[pitch + 12] = nan_of_low_bits;
      const Rows shape{kPieces * rows / 2, pixels, writable, out_pitch};
      const auto split = [&](const KernelTable& kernels) {
        Guarded<uint32_t> out = output<uint32_t>(shape);
        kernels.matrix.split(in.data(), pitch, rows, pixels, out.data(), out_pitch, rows / 2 * out_pitch);
        return out;
      };
      const Guarded<uint32_t> pieces = split(tested);
      expect_rows(pieces, shape, dense(split(reference), shape.rows, pixels, out_pitch));
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t p = 0; p < pixels; ++p) {
          double sum = 0;
          for (int64_t i = 0; i < kPieces; ++i) {
            sum += static_cast<double>(value_of(pieces[(i * rows / 2 + r / 2) * out_pitch + p], r % 2));
          }
          const auto value = static_cast<double>(in[r * pitch + p]);
          if (std::isfinite(value) ? sum != value : !std::isnan(sum)) fail(r, p, to_text(value), sum, 0);
        }
      }
    }
  }
}

void test_multiply(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const MatrixKernels& unit = tested.matrix;
  const int64_t most_rows = unit.tile.rows, most_pixels = unit.tile.pixels;
  for (const int64_t weight_pieces : {1, 2, 3}) {
    for (const int64_t steps : {1, 2, 5}) {
      for (const int64_t rows : {int64_t{1}, most_rows / 2, most_rows / 2 + 1, most_rows}) {
        for (const int64_t pixels : kAwkward) {
          if (pixels > most_pixels) continue;
          begin_case({{"pieces", weight_pieces}, {"steps", steps}, {"rows", rows}, {"pixels", pixels}});
          const int64_t depth = 2 * steps * kMatrixWords, pairs = depth / 2;
          const int64_t weights_pitch = pairs + 3, panel_pitch = pixels + 5;
          const Guarded<float> weights = random.rows<float>(depth, most_rows, most_rows);
          const Guarded<float> inputs = random.rows<float>(depth, pixels, pixels);
          // The reference splits both; weights lie the other way round.
          Guarded<uint32_t> split_weights(kPieces * pairs * most_rows, kUnsetInput);
          reference.matrix.split(weights.data(), most_rows, depth, most_rows, split_weights.data(), most_rows,
                                 pairs * most_rows);
          Guarded<uint32_t> turned(weight_pieces * most_rows * weights_pitch, kUnsetInput);
          for (int64_t i = 0; i < weight_pieces; ++i) {
            for (int64_t r = 0; r < most_rows; ++r) {
              for (int64_t k = 0; k < pairs; ++k) {
                turned[(i * most_rows + r) * weights_pitch + k] = split_weights[(i * pairs + k) * most_rows + r];
              }
            }
          }
          Guarded<uint32_t> panel(kPieces * pairs * panel_pitch, kUnsetInput);
          reference.matrix.split(inputs.data(), pixels, depth, pixels, panel.data(), panel_pitch, pairs * panel_pitch);
          const int64_t lanes = std::min(round_up(pixels, tested.lanes), most_pixels);
          const Rows shape{rows, pixels, lanes, most_pixels + 2};
          Guarded<float> out = output<float>({most_rows, pixels, lanes, shape.pitch});
          unit.begin();
          unit.multiply(turned.data(), weights_pitch, most_rows * weights_pitch, weight_pieces, panel.data(),
                        panel_pitch, pairs * panel_pitch, steps, out.data(), shape.pitch, rows, pixels);
          unit.end();
          std::vector<float> expected(static_cast<size_t>(rows * pixels));
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t p = 0; p < pixels; ++p) {
              double sum = 0;
              for (int64_t k = 0; k < depth; ++k) {
                double weight = 0;
                for (int64_t i = 0; i < weight_pieces; ++i) {
                  weight += static_cast<double>(value_of(turned[(i * most_rows + r) * weights_pitch + k / 2], k % 2));
                }
                sum += weight * static_cast<double>(inputs[k * pixels + p]);
              }
              expected[static_cast<size_t>(r * pixels + p)] = static_cast<float>(sum);
            }
          }
          expect_rows(out, shape, expected, tolerance(expected, depth));
        }
      }
    }
  }
}

void test_multiply8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const MatrixKernels& unit = tested.matrix;
  const int64_t most_rows = unit.tile8.rows, most_pixels = unit.tile8.pixels;
  for (const int64_t steps : {1, 2, 5}) {
    for (const int64_t rows : {int64_t{1}, most_rows / 2, most_rows / 2 + 1, most_rows}) {
      for (int64_t pixels = 1; pixels <= most_pixels; ++pixels) {
        begin_case({{"steps", steps}, {"rows", rows}, {"pixels", pixels}});
        const int64_t depth = steps * kMatrixWords, weights_pitch = depth + 3, panel_pitch = pixels + 5;
        const Guarded<uint32_t> weights = random.rows<uint32_t>(most_rows, depth, weights_pitch);
        const Guarded<uint32_t> panel = random.rows<uint32_t>(depth + 1, pixels, panel_pitch);
        // Steps lie in any order, and need not begin where a row does.
        std::vector<int32_t> at;
        for (int64_t s = steps; s-- > 0;) at.push_back(static_cast<int32_t>(s * kMatrixWords * panel_pitch + s % 3));
        const int64_t lanes = std::min(round_up(pixels, tested.lanes), most_pixels);
        const Rows shape{rows, pixels, lanes, most_pixels + 2};
        Guarded<int32_t> out = output<int32_t>({most_rows, pixels, lanes, shape.pitch});
        unit.begin();
        unit.multiply8(weights.data(), weights_pitch, panel.data(), panel_pitch, at.data(), steps, out.data(),
                       shape.pitch, rows, pixels);
        unit.end();
        std::vector<int32_t> expected(static_cast<size_t>(rows * pixels));
        reference.matrix.multiply8(weights.data(), weights_pitch, panel.data(), panel_pitch, at.data(), steps,
                                   expected.data(), pixels, rows, pixels);
        expect_rows(out, shape, expected);
      }
    }
  }
}

void test_decode_words(const KernelTable& tested, const KernelTable& reference, Random& random) {
  constexpr int64_t kRows = 3;
  for (const int64_t dim : {1, 2, 3, 4, 9}) {
    for (const int64_t blocks : kAwkward) {
      begin_case({{"dim", dim}, {"blocks", blocks}});
      const Guarded<uint32_t> codebook = random.array<uint32_t>(kCentroids * dim);
      Guarded<uint16_t> codes = random.codes(kRows, blocks, blocks + 2, kCentroids);
      for (int64_t i = 0; i < codes.size(); ++i) {
        if (i % (blocks + 2) < blocks) codes[i] = static_cast<uint16_t>(codes[i] * dim);
      }
      const Rows shape{kRows, blocks * dim, blocks * dim, blocks * dim + 3};
      const auto decode = [&](const KernelTable& kernels) {
        Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
        kernels.matrix.decode_words(codes.data(), blocks + 2, codebook.data(), dim, out.data(), shape.pitch, kRows,
                                    blocks);
        return out;
      };
      expect_rows(decode(tested), shape, dense(decode(reference), kRows, shape.count, shape.pitch));
    }
  }
}

void test_decode_pairs(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t pairs : kAwkward) {
    begin_case({{"pairs", pairs}});
    const Guarded<int8_t> bytes = random.array<int8_t>(2 * pairs);
    const Rows shape{1, pairs, pairs, pairs};
    const auto decode = [&](const KernelTable& kernels) {
      Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
      kernels.matrix.decode_pairs(bytes.data(), out.data(), pairs);
      return out;
    };
    const Guarded<uint32_t> got = decode(tested);
    expect_rows(got, shape, dense(decode(reference), 1, pairs, pairs));
    for (int64_t i = 0; i < 2 * pairs; ++i) {
      const float value = value_of(got[i / 2], i % 2);
      if (value != static_cast<float>(bytes[i])) fail(0, i, to_text(bytes[i]), value, 0);
    }
  }
}

template <void (*test)(const KernelTable&, const KernelTable&, Random&)>
void where_there_is_one(const KernelTable& tested, const KernelTable& reference, Random& random) {
  if (tested.matrix.exists()) test(tested, reference, random);
}

constexpr KernelTest kTests[] = {
    {"matrix.split", &where_there_is_one<&test_split>},
    {"matrix.multiply", &where_there_is_one<&test_multiply>},
    {"matrix.multiply8", &where_there_is_one<&test_multiply8>},
    {"matrix.decode_words", &where_there_is_one<&test_decode_words>},
    {"matrix.decode_pairs", &where_there_is_one<&test_decode_pairs>},
};

}  // namespace

std::span<const KernelTest> matrix_kernel_tests() { return kTests; }

}  // namespace pyquant
