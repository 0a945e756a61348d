// The tests of the kernels that compute with integers: every bit is that of the reference.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "check.h"
#include "kernel_tests.h"
#include "pieces.h"

namespace pyquant {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr int64_t kCentroids = 19;

template <typename T>
Guarded<T> filled(int64_t size, T value, Place place = {}) {
  Guarded<T> array(size, kUnsetInput, place);
  std::fill_n(array.data(), size, value);
  return array;
}

uint32_t repeated_pair(int64_t first, int64_t second) {
  return 0x00010001 * static_cast<uint32_t>((second & 0xff) << 8 | (first & 0xff));
}

// No sum of products of the largest weights that a tile takes is cut off on the way.
void test_extreme_products(const KernelTable& tested) {
  constexpr int64_t kDim = 64, kBlocks = 3;
  const int64_t rows = tested.tile8.rows, pixels = tested.tile8.pixels;
  for (const auto& [first, second] :
       {std::pair<int64_t, int64_t>{-128, 0}, {127, 1}, {64, 64}, {-64, -64}, {127, -128}, {-128, -128}, {127, 127}}) {
    if (tested.adds_in_pairs && std::abs(first + second) > kMostPair) continue;
    begin_case({{"first", first}, {"second", second}});
    const Guarded<uint16_t> at = filled<uint16_t>(kBlocks * rows, 0);
    const Guarded<uint32_t> codebook = filled<uint32_t>(kDim, repeated_pair(first, second));
    const Guarded<uint32_t> panel = filled<uint32_t>(kBlocks * kDim * pixels, 0xffffffff);
    const Rows shape{rows, pixels, pixels, pixels};
    Guarded<int32_t> out = output<int32_t>(shape);
    const std::vector<int32_t> begins = rows_apart(kBlocks * kDim, pixels);
    tested.gemm_tile8(at.data(), codebook.data(), kDim, kBlocks, panel.data(), begins.data(), out.data(), pixels,
                      pixels);
    const auto sum = static_cast<int32_t>(kBlocks * kDim * 2 * 255 * (first + second));
    expect_rows(out, shape, std::vector<int32_t>(static_cast<size_t>(rows * pixels), sum));
  }
}

void test_gemm_tile8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const auto gemm = [](const KernelTable& kernels) {
    return Gemm<uint32_t, int32_t>{kernels.gemm_tile8, kernels.tile8};
  };
  test_gemm(gemm(tested), gemm(reference), tested.lanes, random,
            [&](uint32_t quad) { return tested.adds_in_pairs ? fitting(quad) : quad; });
  test_extreme_products(tested);
}

void test_dot_rows8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t depth : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 577}) {
    for (const int64_t rows : {1, 7, 8, 9, 17}) {
      begin_case({{"depth", depth}, {"rows", rows}});
      const int64_t pitch = depth + 3;
      const Guarded<uint32_t> weights = random.rows<uint32_t>(rows, depth, pitch);
      const Guarded<uint32_t> inputs = random.rows<uint32_t>(1, depth, depth);
      const Rows shape{rows, 1, 1, 3};
      const auto dot = [&](const KernelTable& kernels) {
        Guarded<int32_t> out = output<int32_t>(shape, kExact);
        kernels.dot_rows8(weights.data(), pitch, inputs.data(), depth, out.data(), shape.pitch, rows);
        return out;
      };
      expect_rows(dot(tested), shape, dense(dot(reference), rows, 1, shape.pitch));
    }
  }
}

void test_decode_quads(const KernelTable& tested, const KernelTable& reference, Random& random) {
  constexpr int64_t kRows = 2;
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1},
                                      {1, 2},
                                      {1, 4},
                                      {1, 9},
                                      {1, 16},
                                      {1, 25},
                                      {3, 1},
                                      {5, 1},
                                      {5, 3},
                                      {4, 4},
                                      {3, 3},
                                      {2, 4},
                                      {5, 5},
                                      {7, 7}}) {
    for (const int64_t channels : {1, 2, 4, 8, 12}) {
      for (const auto& [groups, books] : {std::pair<int64_t, int64_t>{1, 1}, {2, 1}, {7, 1}, {1, 2}, {5, 4}}) {
        for (const bool apart : {false, true}) {
          begin_case({{"rows", rows},
                      {"columns", columns},
                      {"channels", channels},
                      {"groups", groups},
                      {"codebooks", books},
                      {"apart", apart}});
          ByteCentroids centroids{.bytes = nullptr,
                                  .parts = nullptr,
                                  .codebooks = books,
                                  .centroids = kCentroids,
                                  .channels = channels,
                                  .rows = rows,
                                  .columns = columns};
          const int64_t size_of_all = books * kCentroids * channels * centroids.width();
          const Guarded<int8_t> bytes = random.array<int8_t>(size_of_all);
          Guarded<int16_t> parts = random.array<int16_t>(size_of_all);
          for (int64_t i = 0; i < size_of_all; ++i) parts[i] = static_cast<int16_t>(parts[i] / 2 / books);
          if (books == 1) centroids.bytes = bytes.data();
          if (books > 1) centroids.parts = parts.data();
          const int64_t blocks = centroids.n() * groups, code_pitch = blocks + 2;
          const Guarded<uint16_t> codes = random.codes(books * kRows, blocks, code_pitch, kCentroids);
          // Rows of the kernel with a gap between them, or without.
          const int64_t quads = groups * centroids.quads() * columns, row_pitch = quads + (apart ? 2 : 0);
          const std::vector<int32_t> begin = rows_apart(rows, row_pitch);
          const int64_t size = (rows - 1) * row_pitch + quads;
          const auto decode = [&](const KernelTable& kernels) {
            Guarded<uint32_t> out(kRows * size, kUnsetOutput, kExact);
            kernels.decode_quads(centroids, codes.data(), kRows * code_pitch, code_pitch, begin.data(), out.data(),
                                 size, kRows, groups);
            return out;
          };
          // What lies in the gaps is unset in both.
          expect_rows(decode(tested), {kRows, size, size, size}, dense(decode(reference), kRows, size, size));
        }
      }
    }
  }
}

void test_sparse_sum8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_sparse<uint32_t, int32_t>(tested.sparse_sum8, reference.sparse_sum8, tested.lanes, random);
}

void test_any_finish8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  constexpr std::pair<uint8_t, uint8_t> kBounds[] = {{0, 255}, {3, 250}, {128, 128}};
  constexpr int64_t kQuads = 2, kRows = 4 * kQuads;
  for (const int64_t count : kAwkward) {
    for (const auto& [low, high] : kBounds) {
      for (const bool with_residual : {false, true}) {
        begin_case({{"count", count}, {"low", low}, {"high", high}, {"residual", with_residual}});
        const Rows shape{kQuads, count, count, count + 2};
        const int64_t in_pitch = count + 1;
        Guarded<int32_t> in = random.rows<int32_t>(kRows, count, in_pitch);
        for (int64_t i = 0; i < in.size(); ++i) in[i] >>= 12;
        in[0] = std::numeric_limits<int32_t>::min();
        in[in.size() - 1] = std::numeric_limits<int32_t>::max();
        Guarded<float> scale = random.array<float>(kRows, kExact), bias = random.array<float>(kRows, kExact);
        for (int64_t r = 0; r < kRows; ++r) scale[r] *= 4e-4f, bias[r] = bias[r] * 99.0f + 99.0f;
        constexpr float kSpecial[] = {0.0f, kNan, kInfinity, -kInfinity};
        const bool plain = low == 0 && high == 255 && count % 2 == 0;
        if (!plain) bias[random.below(kRows)] = kSpecial[random.below(4)];
        const Guarded<uint32_t> residual = random.rows<uint32_t>(kQuads, count, shape.pitch, kExact);
        const Finish8 finish{.scale = scale.data(),
                             .bias = bias.data(),
                             .residual = with_residual ? residual.data() : nullptr,
                             .residual_scale = random.value<float>(),
                             .low = low,
                             .high = high,
                             .plain = plain};
        const auto run = [&](const KernelTable& kernels) {
          Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
          kernels.finish_tile8(in.data(), in_pitch, finish, out.data(), shape.pitch, kRows, count);
          return out;
        };
        expect_rows(run(tested), shape, dense(run(reference), kQuads, count, shape.pitch));
      }
    }
  }
}

// One value, where it matters what is rounded when.
struct Finished {
  int32_t in;
  float scale, bias;
  uint32_t byte;  // of the residual
  float residual_scale;
  uint32_t expected;
};
constexpr Finished kFinished[] = {
    {1, 0.5f, 0.0f, 0, 0.0f, 0},  // halves to even
    {3, 0.5f, 0.0f, 0, 0.0f, 2},
    {5, 0.5f, 0.0f, 0, 0.0f, 2},
    {509, 0.5f, 0.0f, 0, 0.0f, 254},
    {511, 0.5f, 0.0f, 0, 0.0f, 255},
    {0x7fffffff, kLargest, 0.0f, 0, 0.0f, 255},
    {-0x7fffffff, kLargest, 0.0f, 0, 0.0f, 0},
    // The product is 4098 + 2^-12. Were it rounded, a half would be left.
    {4097, 1.0f + 0x1p-12f, -4097.5f, 0, 0.0f, 1},
    // The residual's product is 129 + 2^-13 + 2^-20. Were it rounded, a half would be left.
    {0, 1.0f, -128.5f - 0x1p-13f, 129, 1.0f + 0x1p-20f, 1},
    // Before the residual is added, 2^24 + 0.75 is rounded to 2^24.
    {1 << 24, 1.0f, 0.75f, 1, -0x1p24f, 0},
};

void test_finished_values(const KernelTable& tested) {
  for (const int64_t count : kAwkward) {
    for (size_t i = 0; i < std::size(kFinished); ++i) {
      const Finished& value = kFinished[i];
      for (const bool with_residual : {false, true}) {
        if (!with_residual && value.byte != 0) continue;
        begin_case({{"count", count}, {"value", static_cast<int64_t>(i)}, {"residual", with_residual}});
        const Guarded<int32_t> in = filled<int32_t>(4 * count, value.in);
        const Guarded<float> scale = filled(4, value.scale, kExact), bias = filled(4, value.bias, kExact);
        const Guarded<uint32_t> residual = filled<uint32_t>(count, 0x01010101 * value.byte, kExact);
        const Finish8 finish{.scale = scale.data(),
                             .bias = bias.data(),
                             .residual = with_residual ? residual.data() : nullptr,
                             .residual_scale = value.residual_scale,
                             .low = 0,
                             .high = 255,
                             .plain = value.scale < kLargest};
        const Rows shape{1, count, count, count};
        Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
        tested.finish_tile8(in.data(), count, finish, out.data(), count, 4, count);
        expect_rows(out, shape, std::vector<uint32_t>(static_cast<size_t>(count), 0x01010101 * value.expected));
      }
    }
  }
}

void test_finish_tile8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  test_any_finish8(tested, reference, random);
  test_finished_values(tested);
}

// One value, as it is rounded and clamped.
struct Quantized {
  float in;
  uint32_t expected;
  float inverse_scale = 1.0f, zero = 0.0f;
};
constexpr Quantized kQuantized[] = {
    {0.5f, 0},
    {1.5f, 2},
    {2.5f, 2},
    {254.5f, 254},
    {255.5f, 255},
    {-0.5f, 0},
    {kInfinity, 255},
    {kLargest, 255},
    {-kInfinity, 0},
    {-kLargest, 0},
    {kNan, 0},
    {-kNan, 0},
    {0x1p31f, 255},
    {-0x1p31f, 0},
    // As in kFinished.
    {4097.0f, 1, 1.0f + 0x1p-12f, -4097.5f},
};

void test_quantize(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t count : kAwkward) {
    for (const int64_t rows : {1, 2, 3, 4}) {
      begin_case({{"count", count}, {"rows", rows}});
      const Guarded<float> in = random.rows<float>(rows, count, count + 1, kExact);
      const Rows shape{1, count, count, count};
      const auto zero = static_cast<float>(random.below(256));
      const auto quantize = [&](const KernelTable& kernels) {
        Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
        kernels.quantize(in.data(), count + 1, rows, 150.0f, zero, out.data(), count);
        return out;
      };
      expect_rows(quantize(tested), shape, dense(quantize(reference), 1, count, count));
    }
    for (size_t i = 0; i < std::size(kQuantized); ++i) {
      begin_case({{"count", count}, {"value", static_cast<int64_t>(i)}});
      const Quantized& value = kQuantized[i];
      const Guarded<float> in = filled(4 * count, value.in, kExact);
      const Rows shape{1, count, count, count};
      Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
      tested.quantize(in.data(), count, 4, value.inverse_scale, value.zero, out.data(), count);
      expect_rows(out, shape, std::vector<uint32_t>(static_cast<size_t>(count), 0x01010101 * value.expected));
    }
  }
}

void test_dequantize(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t count : kAwkward) {
    for (const int64_t rows : {1, 2, 3, 4}) {
      begin_case({{"count", count}, {"rows", rows}});
      const Guarded<uint32_t> in = random.array<uint32_t>(count, kExact);
      const Rows shape{rows, count, count, count + 2};
      const auto scale = random.value<float>(), zero = static_cast<float>(random.below(256));
      const auto dequantize = [&](const KernelTable& kernels) {
        Guarded<float> out = output<float>(shape, kExact);
        kernels.dequantize(in.data(), scale, zero, out.data(), shape.pitch, rows, count);
        return out;
      };
      expect_rows(dequantize(tested), shape, dense(dequantize(reference), rows, count, shape.pitch));
    }
  }
}

void test_max_row8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t step : {1, 2, 3}) {
    for (const int64_t count : kAwkward) {
      begin_case({{"step", step}, {"count", count}});
      const Guarded<uint32_t> in = random.array<uint32_t>((count - 1) * step + 1);
      const Guarded<uint32_t> start = random.array<uint32_t>(count);
      const Rows shape{1, count, count, count};
      const auto max = [&](const KernelTable& kernels) {
        Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
        copy_rows(start, shape, out);
        kernels.max_row8(in.data(), step, out.data(), count);
        return out;
      };
      expect_rows(max(tested), shape, dense(max(reference), 1, count, count));
    }
  }
}

constexpr KernelTest kTests[] = {
    {"gemm_tile8", &test_gemm_tile8},   {"decode_quads", &test_decode_quads}, {"finish_tile8", &test_finish_tile8},
    {"quantize", &test_quantize},       {"dequantize", &test_dequantize},     {"max_row8", &test_max_row8},
    {"sparse_sum8", &test_sparse_sum8}, {"dot_rows8", &test_dot_rows8},
};

}  // namespace

std::span<const KernelTest> integer_kernel_tests() { return kTests; }

}  // namespace pyquant
