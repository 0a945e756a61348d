// Weights as a matrix of quads, whose rows are in the order of a panel's: as MatrixTile8Fn takes them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "runtime/byte_weights.h"
#include "runtime/patches.h"
#include "runtime/quad_decoder.h"

namespace pyquant {

// Values between the beginnings of two rows, of which each run of a panel's rows takes whole steps.
int64_t matrix_pitch(const Patches& patches);

class MatrixWeights {
 public:
  // Of a weight whose quads are part of centroids, which are given, or are decoded, or of a dense one, without both.
  MatrixWeights(const Weight& weight, QuadSource source, const Patches& patches, const KernelTable& kernels,
                AlignedBuffer<uint32_t> centroids, std::optional<QuadDecoder> decoder);

  int64_t pitch() const { return pitch_; }

  // Where each step of a row finds its inputs in a panel whose rows are `panel_pitch` values apart.
  std::vector<int32_t> steps(int64_t panel_pitch) const;

  // Write [count, pitch()], the rows of outputs from `output` on: decoded, or put in order of a dense weight's quads
  // [O, depth]. Quads behind a run are zero.
  void decode(int64_t output, int64_t count, uint32_t* rows) const;
  void arrange(const AlignedBuffer<uint32_t>& quads, int64_t count, uint32_t* rows) const;

 private:
  struct Run {
    int64_t begin, end;  // in a row of the matrix
    int64_t first_row, lane;
  };

  void clear_behind_runs(int64_t count, uint32_t* rows) const;

  const KernelTable* kernels_;
  int64_t pitch_;
  int64_t dim_;  // quads of a centroid
  std::vector<Run> runs_;
  std::vector<int32_t> places_;  // in a row of the matrix, of each quad of a row of the weight
  // Where quads are part of a centroid:
  AlignedBuffer<uint32_t> centroids_;
  AlignedBuffer<uint16_t> codes_;  // [O, codes_pitch_]
  int64_t codes_pitch_ = 0;
  // Where they are made of several:
  std::optional<QuadDecoder> decoder_;
  std::vector<int32_t> row_begins_;  // of runs
};

}  // namespace pyquant
