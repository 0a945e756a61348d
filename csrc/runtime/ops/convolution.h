// What the paths of a convolution or linear layer share: its sizes, its inputs as panels, its epilogue.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "runtime/patches.h"
#include "runtime/sparse_rows.h"
#include "runtime/step.h"

namespace pyquant {

struct Convolution {
  Convolution(const Layer& layer, const PlanContext& context);

  int64_t group_outputs() const { return weight->outputs / geometry.groups; }

  // Whether an image is one pixel, whose inputs lie side by side: of a linear layer, or a 1x1 convolution.
  bool is_vector() const {
    const ConvGeometry& g = geometry;
    return weight->kernel_rows == 1 && weight->kernel_columns == 1 && g.groups == 1 && g.height == 1 && g.width == 1 &&
           g.out_plane() == 1 && g.pad_top == 0 && g.pad_left == 0;
  }

  // Write outputs [first_output, first_output + rows) of pixels [pixel, pixel + count): tile [rows, pitch] scaled,
  // shifted, with the residual added and the activation applied.
  void finish(const float* tile, int64_t pitch, int64_t first_output, int64_t rows, int64_t pixel, int64_t count,
              const RunState& state) const;

  // The same with another scale and bias for each row.
  void finish(const float* tile, int64_t pitch, const float* row_scale, const float* row_bias, int64_t first_output,
              int64_t rows, int64_t pixel, int64_t count, const RunState& state) const;

  // Ask for the memory that finish() will read and write: rows lie pages apart, so that processors do not foresee it.
  void expect(int64_t first_output, int64_t rows, int64_t pixel, int64_t count, const RunState& state) const;

  // Write the weights of outputs [first_output, first_output + rows), which are not dense, as a matrix [rows, pitch].
  void decode(int64_t first_output, int64_t rows, float* weights, int64_t pitch) const;

  // Those that are not zero, of a weight without codes, whose inputs begin at these places [depth].
  SparseRows<float> sparse_rows(const std::vector<int32_t>& at) const;

  // All of them, [O, depth], where there is memory to keep them, or null.
  KeptWeights::Values<float> kept_rows(const PlanContext& context) const;

  const KernelTable* kernels;
  std::shared_ptr<const Weight> weight;
  ConvGeometry geometry;
  Patches patches;
  std::vector<float> scale;  // [O]
  std::vector<float> bias;   // [O]
  Activation activation;
  ValueId input;
  ValueId output;
  ValueId residual;   // -1: none
  bool writes_parts;  // whether the output lies in a part for each thread
  // Whether it pays to expect() a residual early, which may lie in another processor's cache.
  bool expects_residual;
};

// Ask for a line of memory, to be written or read. Compilers find that a function has no effect which does nothing
// else, and leave it out; and they ask to read what is to be written unless all processors are known to tell these
// apart (those that cannot do nothing).
template <bool written>
void ask_for(const uint32_t* line) {
#if defined(__x86_64__)
  if constexpr (written) {
    asm volatile("prefetchw %0" : : "m"(*line));
  } else {
    asm volatile("prefetcht0 %0" : : "m"(*line));
  }
#else
  __builtin_prefetch(line, written ? 1 : 0);
  asm volatile("");
#endif
}

// The same of rows of `count` values of four bytes.
template <bool written>
void expect_rows(const void* first, int64_t pitch, int64_t rows, int64_t count) {
  constexpr int64_t kLine = 16;  // values
  const auto* const values = static_cast<const uint32_t*>(first);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < count; p += kLine) ask_for<written>(values + r * pitch + p);
  }
}

// A way to compute a convolution.
struct Path {
  const char* kernel;  // its name in `profile`
  Format reads;        // of the input
  // Estimated time in vector multiply-adds of the slowest thread; infinite where the path does not apply.
  double (*cost)(const Convolution& convolution, int threads);
  std::unique_ptr<Step> (*make)(const Layer& layer, const Convolution& convolution, const PlanContext& context);
};

Path direct_path();
Path winograd2_path();
Path winograd4_path();
Path table_path();
Path sparse_path();
Path shift_path();
Path matrix_path();
Path dot_path();
Path lookup_path();
Path direct8_path();
Path matrix8_path();
Path winograd8_path();
Path table8_path();
Path shuffle8_path();
Path sparse8_path();

}  // namespace pyquant
