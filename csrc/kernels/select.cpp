#include "kernels/select.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>

#include "base/aligned_buffer.h"
#include "base/errors.h"
#include "kernels/reference.h"

#if defined(__x86_64__)
#include "kernels/avx2.h"
#include "kernels/avx512.h"
#include "kernels/avx512vnni.h"
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
bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// In rising order of preference; each table starts from the one before it, so an entry that an instruction set does not
// improve stays as it was.
constexpr InstructionSet kInstructionSets[] = {
    {"reference", [] { return true; }, [](KernelTable table) { return table; }},
#if defined(__x86_64__)
    // The compiler's checks include that the operating system saves the registers.
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, &improve_with_avx2},
    {"avx512", &runs_avx512, &improve_with_avx512},
    {"avx512vnni", [] { return runs_avx512() && __builtin_cpu_supports("avx512vnni"); }, &improve_with_avx512vnni},
#elif defined(__aarch64__)
    {"neon", [] { return true; }, &improve_with_neon},
#endif
};

// The most multiply-accumulates a nanosecond that `work`, which returns how many it did, reaches in some 20 ms.
template <typename Work>
double best_rate(const Work& work) {
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kTime{20};
  double best = 0;
  for (const auto end = Clock::now() + kTime; Clock::now() < end;) {
    const auto start = Clock::now();
    const int64_t macs = work();
    const double nanoseconds = std::chrono::duration<double, std::nano>(Clock::now() - start).count();
    best = std::max(best, static_cast<double>(macs) / nanoseconds);
  }
  return best;
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
  for (const InstructionSet& set : kInstructionSets) {
    if (set.runs_here()) table = set.improve(table);
    if (wanted == set.name) break;
  }
  return table;
}

double measure_peak(const KernelTable& kernels) {
  constexpr int64_t kSteps = 100'000;
  alignas(64) std::array<float, 64> sink{};
  return best_rate([&] { return kernels.peak(kSteps, sink.data()) * kSteps; });
}

double measure_peak8(const KernelTable& kernels) {
  constexpr int64_t kDepth = 64, kTurns = 100;
  const Tile& tile = kernels.tile8;
  AlignedBuffer<uint32_t> weights(tile.rows * kDepth), panel(tile.pixels * kDepth);
  AlignedBuffer<int32_t> sums(tile.rows * tile.pixels);
  const std::vector<int32_t> rows = rows_apart(kDepth, tile.pixels);
  std::fill_n(weights.data(), weights.size(), 0u);
  std::fill_n(panel.data(), panel.size(), 0u);
  return best_rate([&] {
    for (int64_t i = 0; i < kTurns; ++i) {
      kernels.gemm_tile8(nullptr, weights.data(), kDepth, 1, panel.data(), rows.data(), sums.data(), tile.pixels,
                         tile.pixels);
    }
    return kTurns * tile.rows * tile.pixels * kDepth * kQuad;
  });
}

}  // namespace pyquant
