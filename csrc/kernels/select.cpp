#include "kernels/select.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>

#include "base/aligned_buffer.h"
#include "base/errors.h"
#include "kernels/reference.h"

#if defined(__x86_64__)
#include "kernels/amx.h"
#include "kernels/avx2.h"
#include "kernels/avx512.h"
#include "kernels/avx512vbmi.h"
#include "kernels/avx512vnni.h"
#include "kernels/avxvnni.h"
#elif defined(__aarch64__)
#include "kernels/neon.h"
#endif

namespace pyquant {
namespace {

struct InstructionSet {
  const char* name;
  bool (*runs_here)();
  KernelTable (*improve)(KernelTable);
};

#if defined(__x86_64__)
bool runs_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool runs_avx512vbmi() {
  return runs_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
}
#endif

// In rising order of preference; each table starts from the one before it, so an entry that an instruction set does not
// improve stays as it was.
constexpr InstructionSet kInstructionSets[] = {
    {"reference", [] { return true; }, [](KernelTable table) { return table; }},
#if defined(__x86_64__)
    // The compiler's checks include that the operating system saves the registers.
    {"avx2", &runs_avx2, &improve_with_avx2},
    {"avxvnni", [] { return runs_avx2() && runs_avxvnni(); }, &improve_with_avxvnni},
    {"avx512", &runs_avx512, &improve_with_avx512},
    {"avx512vnni", [] { return runs_avx512() && __builtin_cpu_supports("avx512vnni"); }, &improve_with_avx512vnni},
    {"avx512vbmi", &runs_avx512vbmi, &improve_with_avx512vbmi},
    {"amx", [] { return runs_avx512() && __builtin_cpu_supports("avx512vnni") && runs_amx(); }, &improve_with_amx},
#elif defined(__aarch64__)
    {"neon", [] { return true; }, &improve_with_neon},
#endif
};

// The most multiply-accumulates a nanosecond that `work`, which returns how many it did, reaches in this time.
template <typename Work>
double best_rate(const Work& work, std::chrono::microseconds time) {
  using Clock = std::chrono::steady_clock;
  double best = 0;
  const auto end = Clock::now() + time;
  do {
    const auto start = Clock::now();
    const int64_t macs = work();
    const double nanoseconds = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    best = std::max(best, static_cast<double>(macs) / nanoseconds);
  } while (Clock::now() < end);
  return best;
}

constexpr std::chrono::milliseconds kPeakTime{20};
constexpr int64_t kPeakDepth = 64;  // of the tiles that are multiplied

// The rate at which tiles of `pixels` pixels are multiplied, all in the first-level cache, in values of four bytes.
template <typename Input, typename Sum, typename Multiply>
double tile_rate(Multiply multiply, const Tile& tile, int64_t pixels, std::chrono::microseconds time) {
  constexpr int64_t kTurns = 20;
  AlignedBuffer<Input> weights(tile.rows * kPeakDepth), panel(tile.pixels * kPeakDepth);
  AlignedBuffer<Sum> sums(tile.rows * tile.pixels);
  const std::vector<int32_t> rows = rows_apart(kPeakDepth, tile.pixels);
  std::fill_n(weights.data(), weights.size(), Input{0});
  std::fill_n(panel.data(), panel.size(), Input{0});
  return best_rate(
      [&] {
        for (int64_t i = 0; i < kTurns; ++i) {
          multiply(nullptr, weights.data(), kPeakDepth, 1, panel.data(), rows.data(), sums.data(), tile.pixels, pixels);
        }
        return kTurns * tile.rows * pixels * kPeakDepth;
      },
      time);
}

// The same of a unit that multiplies matrices.
double matrix_rate(const MatrixKernels& unit, std::chrono::microseconds time) {
  const std::vector<int32_t> steps = rows_apart(kPeakDepth / kMatrixWords, kMatrixWords * unit.tile8.pixels);
  const auto multiply = [&](const void*, const uint32_t* weights, int64_t depth, int64_t, const uint32_t* panel,
                            const int32_t*, int32_t* sums, int64_t pitch, int64_t pixels) {
    unit.multiply8(weights, depth, panel, pitch, steps.data(), static_cast<int64_t>(steps.size()), sums, pitch,
                   unit.tile8.rows, pixels);
  };
  unit.begin();
  const double rate = tile_rate<uint32_t, int32_t>(multiply, unit.tile8, unit.tile8.pixels, time);
  unit.end();
  return rate;
}

// Processors differ in how wide their units are: some take twice as long for a vector as for half of one, others as
// long. What is measured side by side is compared, and most of several such ratios must agree: neither a change of
// clocks nor what else runs here for a while should decide, for paths are chosen by this too.
int64_t measured_grain(const KernelTable& kernels) {
  constexpr std::chrono::microseconds kTime{100};
  constexpr int kTurns = 9;
  constexpr double kWorthwhile = 0.92;  // where halves take as long, tiles of three vectors reach 5/6 without one
  if (kernels.lanes == 1) return 1;
  const int64_t half = kernels.lanes / 2;
  const auto rate = [&](int64_t pixels) {
    return tile_rate<float, float>(kernels.gemm_tile, kernels.tile, pixels, kTime);
  };
  std::array<double, kTurns> ratios;
  for (double& ratio : ratios) {
    const double narrower = rate(kernels.tile.pixels - half);
    ratio = narrower / rate(kernels.tile.pixels);
  }
  const auto quartile = ratios.begin() + kTurns / 4;
  std::nth_element(ratios.begin(), quartile, ratios.end());
  return *quartile > kWorthwhile ? half : kernels.lanes;
}

// The same for an instruction set of the list, measured once.
int64_t known_grain(size_t set, const KernelTable& kernels) {
  static std::array<std::atomic<int64_t>, std::size(kInstructionSets)> known{};
  int64_t grain = known[set].load(std::memory_order_relaxed);
  if (grain == 0) known[set].store(grain = measured_grain(kernels), std::memory_order_relaxed);
  return grain;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const InstructionSet& set : kInstructionSets) {
    if (set.runs_here()) names.emplace_back(set.name);
  }
  return names;
}

KernelTable select_kernels(const std::string& isa) {
  const std::vector<std::string> known = available_isas();
  const char* from_environment = std::getenv("PYQUANT_ISA");
  std::string wanted = isa;
  if (wanted.empty() && from_environment != nullptr) wanted = from_environment;
  if (wanted.empty()) wanted = known.back();
  if (std::find(known.begin(), known.end(), wanted) == known.end()) {
    std::string names;
    for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
    throw Error((isa.empty() ? "PYQUANT_ISA: '" : "isa: '") + wanted + "' cannot run here; this machine runs " + names);
  }
  KernelTable table = reference_kernels();
  for (size_t i = 0;; ++i) {
    const InstructionSet& set = kInstructionSets[i];
    if (set.runs_here()) table = set.improve(table);
    if (wanted == set.name) {
      table.grain = known_grain(i, table);
      return table;
    }
  }
}

double measure_peak(const KernelTable& kernels) {
  constexpr int64_t kSteps = 100'000;
  alignas(64) std::array<float, 64> sink{};
  return best_rate([&] { return kernels.peak(kSteps, sink.data()) * kSteps; }, kPeakTime);
}

double measure_peak8(const KernelTable& kernels) {
  if (const MatrixKernels& unit = kernels.matrix; unit.exists()) return kQuad * matrix_rate(unit, kPeakTime);
  return kQuad * tile_rate<uint32_t, int32_t>(kernels.gemm_tile8, kernels.tile8, kernels.tile8.pixels, kPeakTime);
}

}  // namespace pyquant
