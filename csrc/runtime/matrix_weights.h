// Weights as a matrix of quads, whose rows are in the order of a panel's: as MatrixTile8Fn takes them.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/byte_weights.h"
#include "runtime/patches.h"

namespace pyquant {

// Values between the beginnings of two rows, of which each run of a panel's rows takes whole steps.
int64_t matrix_pitch(const Patches& patches);

class MatrixWeights {
 public:
  // Of a weight from quads [O, depth], all of them, or from codes, which are decoded with centroids. Quads behind a run
  // are zero.
  MatrixWeights(const Weight& weight, QuadSource source, const Patches& patches, const KernelTable& kernels);

  int64_t pitch() const { return pitch_; }

  // Where each step of a row finds its inputs in a panel whose rows are `panel_pitch` values apart.
  std::vector<int32_t> steps(int64_t panel_pitch) const;

  // Write [count, pitch()], the rows of outputs from `output` on.
  //   quads  dense: [O, depth]; else centroids as centroid_quads() returns them, or spread_quads() for this multiple
  void write(int64_t output, int64_t count, const uint32_t* quads, uint32_t* rows) const;

  // What the columns of a spread centroid's rows are rounded up to.
  int64_t spread_multiple() const { return rows_lie_together_ ? 1 : kSpreadColumns; }

 private:
  struct Run {
    int64_t begin, end;  // in a row of the matrix
    int64_t first_row, lane;
  };

  QuadSource source_;
  const KernelTable* kernels_;
  int64_t pitch_;
  int64_t depth_;
  int64_t dim_;  // quads of a centroid
  int64_t channels_, kernel_rows_, kernel_columns_;
  int64_t blocks_per_quad_;
  std::vector<Run> runs_;
  std::vector<int32_t> places_;      // in a row of the matrix, of each quad of a row of the weight
  bool rows_lie_together_ = false;   // of the kernel, and the next channel's behind
  std::vector<int32_t> row_begins_;  // where they do not, those of the first channel
  int64_t codes_pitch_ = 0;
  AlignedBuffer<uint16_t> codes_;  // [O, codes_pitch_]
};

}  // namespace pyquant
