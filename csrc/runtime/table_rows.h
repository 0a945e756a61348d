// The codes of a layer as table_sum() reads them: where the table row of each begins.
//
// Additive codebooks are tabulated side by side: position q = j * M + m of an output's sum is the m-th code of block j.
// A pass over the outputs adds some positions, whose tables lie one after the other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/graph.h"

namespace pyquant {

// So many bytes of tables stay in the first-level cache, beside what else is read.
int64_t near_table_bytes();

struct TablePasses {
  // With tables of rows of `row_bytes`; about `pass_bytes` of them in a pass.
  TablePasses(const Weight& weight, int64_t row_bytes, int64_t pass_bytes);

  // Whether all rows of a pass can be told apart.
  bool fit() const;

  int64_t num_passes() const { return ceil_div(positions, per_pass); }

  // Run body(first position, their number) for each pass.
  template <typename Body>
  void for_each(const Body& body) const {
    for (int64_t first = 0; first < positions; first += per_pass) body(first, std::min(per_pass, positions - first));
  }

  int64_t positions;
  int64_t per_pass;
  int64_t table_bytes;  // of one position
};

// The code of output o at position q.
inline int64_t code_at(const Weight& weight, int64_t o, int64_t q) {
  const int64_t row = q % weight.codebooks * weight.outputs + o;
  return weight.codes[row * weight.blocks_per_row() + q / weight.codebooks];
}

// For each pass [O, its positions], in steps of kTableStep bytes from its first table.
AlignedBuffer<uint16_t> table_rows(const Weight& weight, const TablePasses& passes, int64_t row_bytes);

}  // namespace pyquant
