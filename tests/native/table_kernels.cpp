// The tests of the kernels that make and add up tables of integers: every bit is that of the reference.
#include <algorithm>
#include <vector>

#include "check.h"
#include "kernel_tests.h"
#include "pieces.h"

namespace pyquant {
namespace {

constexpr int64_t kCentroids = 19;

void test_turn_quads(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const int64_t taps : {1, 2, 3, 4, 5, 7, 8, 9, 49}) {
    for (const int64_t pixels : kAwkward) {
      begin_case({{"taps", taps}, {"pixels", pixels}});
      const int64_t writable = round_up(pixels, tested.lanes);
      const Rows shape{4 * ceil_div(taps, 4), pixels, writable, writable + 3};
      // Taps begin anywhere, and may share inputs.
      std::vector<int32_t> at;
      for (int64_t tap = 0; tap < taps; ++tap) at.push_back(static_cast<int32_t>(random.below(taps * shape.pitch)));
      const Guarded<uint32_t> in = random.array<uint32_t>(taps * shape.pitch + pixels);
      const auto turn = [&](const KernelTable& kernels) {
        Guarded<uint32_t> out = output<uint32_t>(shape);
        kernels.turn_quads(in.data(), at.data(), taps, pixels, out.data(), shape.pitch);
        return out;
      };
      expect_rows(turn(tested), shape, dense(turn(reference), shape.rows, pixels, shape.pitch));
    }
  }
}

// A layer of the table path: tables are a matter between the two kernels of an instruction set, only sums compare.
struct TableLayer {
  int64_t outputs, positions, dim, shift;
  const Guarded<uint16_t>& codes;     // [outputs, positions]
  const Guarded<uint32_t>& codebook;  // [kCentroids, dim]
  bool accumulate;

  // panel [positions * dim, table8_pixels], sums [outputs, table8_pixels]
  void run(const KernelTable& kernels, const uint32_t* panel, int64_t pixels, int32_t* sums) const {
    const int64_t pitch = kernels.table8_pixels;
    Guarded<int16_t> tables(positions * kCentroids * pitch, kUnsetOutput, kAligned);
    for (int64_t q = 0; q < positions; ++q) {
      kernels.table_build8(codebook.data(), kCentroids, dim, panel + q * dim * pitch, pixels, shift,
                           tables.data() + q * kCentroids * pitch);
    }
    if (!tables.surroundings_are_unset()) throw Failure("expected nothing around the tables to be written");
    const Guarded<uint16_t> at =
        rows_of_tables(codes, positions, kCentroids, pitch * static_cast<int64_t>(sizeof(int16_t)));
    kernels.table_sum8(at.data(), positions, tables.data(), sums, outputs, pixels, accumulate);
  }
};

// The least shift for which tables and sums of so many bytes fit int16_t, whatever the weights.
int64_t shift_for(int64_t largest, int64_t dim, int64_t positions) {
  int64_t shift = 0;
  while (((dim * 4 * 128 * largest >> shift) + 1) * positions > std::numeric_limits<int16_t>::max()) ++shift;
  return shift;
}

void test_tables8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  const int64_t pitch = tested.table8_pixels, columns = reference.table8_pixels;
  for (const int64_t dim : {1, 2, 3, 4, 5, 9}) {
    for (const auto& [outputs, positions] : {std::pair{1, 1}, {2, 3}, {31, 4}, {3, 18}}) {
      for (const bool accumulate : {false, true}) {
        for (int64_t pixels = 1; pixels <= pitch; ++pixels) {
          const int64_t largest = pixels % 2 == 0 ? 255 : 15, shift = shift_for(largest, dim, positions);
          begin_case({{"dim", dim},
                      {"outputs", outputs},
                      {"positions", positions},
                      {"accumulate", accumulate},
                      {"pixels", pixels},
                      {"shift", shift}});
          const Guarded<uint16_t> codes = random.codes(outputs, positions, positions, kCentroids);
          const Guarded<uint32_t> codebook = random.array<uint32_t>(kCentroids * dim);
          Guarded<uint32_t> panel = random.rows<uint32_t>(positions * dim, pixels, pitch);
          for (int64_t i = 0; i < panel.size(); ++i) panel[i] &= static_cast<uint32_t>(0x01010101 * largest);
          Guarded<int32_t> start = random.rows<int32_t>(outputs, pixels, pitch);
          for (int64_t i = 0; i < start.size(); ++i) start[i] /= 2;  // sums fit int32_t
          const TableLayer layer{outputs, positions, dim, shift, codes, codebook, accumulate};
          const Rows shape = table_rows(tested.lanes, pitch, outputs, pixels);
          Guarded<int32_t> sums = output<int32_t>(shape, kAligned);
          if (accumulate) copy_rows(start, shape, sums);
          layer.run(tested, panel.data(), pixels, sums.data());
          const std::vector<int32_t> expected = in_pieces<int32_t>(
              columns, outputs, pixels, [&](int64_t first, int64_t count, std::vector<int32_t>& out) {
                if (accumulate) out = columns_of(start, pitch, first, columns);
                layer.run(reference, columns_of(panel, pitch, first, columns).data(), count, out.data());
              });
          expect_rows(sums, shape, expected);
        }
      }
    }
  }
}

// What run(kernels, tile) finishes.
template <typename Run>
void expect_finished(const KernelTable& tested, const KernelTable& reference, Random& random, int64_t quads,
                     int64_t pixels, bool with_residual, bool plain, const Run& run) {
  const Rows shape{quads, pixels, pixels, pixels + 3};
  Guarded<float> scale = random.array<float>(round_up(4 * quads, 16));
  Guarded<float> bias = random.array<float>(scale.size());
  for (int64_t o = 0; o < scale.size(); ++o) scale[o] *= 1e-3f, bias[o] = bias[o] * 99.0f + 99.0f;
  const Guarded<uint32_t> residual = random.rows<uint32_t>(quads, pixels, shape.pitch, kExact);
  const auto finished = [&](const KernelTable& kernels) {
    Guarded<uint32_t> out = output<uint32_t>(shape, kExact);
    run(kernels, FinishedTile8{.finish = {.scale = scale.data(),
                                          .bias = bias.data(),
                                          .residual = with_residual ? residual.data() : nullptr,
                                          .residual_scale = 0.25f,
                                          .low = static_cast<uint8_t>(plain ? 0 : 20),
                                          .high = static_cast<uint8_t>(plain ? 255 : 180),
                                          .plain = plain},
                               .out = out.data(),
                               .out_pitch = shape.pitch,
                               .rows = 4 * quads});
    return out;
  };
  expect_rows(finished(tested), shape, dense(finished(reference), quads, pixels, shape.pitch));
}

// Codebooks of 16 and 32 centroids: every number of codebooks and quads, and positions that leave a register not full.
void test_shuffle_tile8(const KernelTable& tested, const KernelTable& reference, Random& random) {
  for (const auto& [entries, codebooks] : {std::pair{16, 1}, {16, 2}, {16, 4}, {32, 1}, {32, 2}}) {
    for (int64_t dim = 1; dim <= kMostShuffledQuads; ++dim) {
      for (const int64_t blocks : {1, 2, 3, 7}) {
        for (const int64_t vectors : {1, 4, 5}) {
          for (const int64_t pixels : {1, 3, 4, 5, 16, 18, 31, 64}) {
            const int64_t outputs = vectors * entries;
            begin_case({{"entries", entries},
                        {"codebooks", codebooks},
                        {"dim", dim},
                        {"blocks", blocks},
                        {"outputs", outputs},
                        {"pixels", pixels}});
            ShuffledCodebooks shuffled{.quads = nullptr,
                                       .bounds = nullptr,
                                       .entries = entries,
                                       .codebooks = codebooks,
                                       .dim = dim,
                                       .blocks = blocks,
                                       .shift = 1};
            const Guarded<uint32_t> quads = random.array<uint32_t>(codebooks * dim * entries);
            Guarded<uint32_t> bounds = random.array<uint32_t>(codebooks * shuffled.families() * dim);
            for (int64_t i = 0; i < bounds.size(); ++i) bounds[i] &= 0x7f7f7f7f;
            shuffled.quads = quads.data();
            shuffled.bounds = bounds.data();
            while ((4 * dim * 127 * 255 >> (shuffled.shift + 7)) + 1 > 127) ++shuffled.shift;
            const int64_t groups = shuffled.groups(), together = shuffled.together();
            Guarded<uint8_t> places(outputs * groups * together, kUnsetInput);
            for (int64_t i = 0; i < places.size(); ++i) {
              places[i] = shuffled_place(entries, i % together, random.below(entries));
            }
            const Guarded<uint32_t> panel = random.array<uint32_t>(blocks * dim * kShuffledPixels, kAligned);
            const uint32_t zeros = 0x01010101 * static_cast<uint32_t>(random.below(256));
            const auto run = [&](const KernelTable& kernels, int32_t* out, const FinishedTile8* tile) {
              Guarded<uint8_t> scratch(shuffle8_bytes(groups), kUnsetOutput, kAligned);
              kernels.shuffle_tile8(shuffled, places.data(), outputs, panel.data(), zeros, pixels, scratch.data(), out,
                                    tile);
            };
            const Rows shape{outputs, pixels, round_up(pixels, 4), kShuffledPixels};
            const auto sums = [&](const KernelTable& kernels) {
              Guarded<int32_t> out = output<int32_t>(shape, kAligned);
              run(kernels, out.data(), nullptr);
              return out;
            };
            expect_rows(sums(tested), shape, dense(sums(reference), outputs, pixels, kShuffledPixels));

            const auto finished = [&](const KernelTable& kernels, const FinishedTile8& tile) {
              Guarded<int32_t> rest = output<int32_t>(shape, kAligned);
              run(kernels, rest.data(), &tile);
            };
            expect_finished(tested, reference, random, outputs / 4 - pixels % 4, pixels, blocks % 2 == 0, dim % 2 == 0,
                            finished);
          }
        }
      }
    }
  }
}

constexpr KernelTest kTests[] = {
    {"turn_quads", &test_turn_quads},
    {"table_build8 and table_sum8", &test_tables8},
    {"shuffle_tile8", &test_shuffle_tile8},
};

}  // namespace

std::span<const KernelTest> table_kernel_tests() { return kTests; }

}  // namespace pyquant
