#include "runtime/table_rows.h"

#include "base/cache_size.h"
#include "kernels/kernels.h"

namespace pyquant {
namespace {

// Where the table of one position alone is large, passes are as short as the loads and stores of sums permit.
constexpr int64_t kFewestPositions = 4;

}  // namespace

int64_t near_table_bytes() {
  static const int64_t bytes = first_level_cache() * 2 / 3;
  return bytes;
}

TablePasses::TablePasses(const Weight& weight, int64_t row_bytes, int64_t pass_bytes)
    : positions(weight.blocks_per_row() * weight.codebooks), table_bytes(weight.centroids * row_bytes) {
  per_pass = std::min(positions, std::max(kFewestPositions, pass_bytes / table_bytes));
}

bool TablePasses::fit() const { return per_pass * table_bytes <= (UINT16_MAX + 1) * kTableStep; }

AlignedBuffer<uint16_t> table_rows(const Weight& weight, const TablePasses& passes, int64_t row_bytes) {
  AlignedBuffer<uint16_t> rows(weight.outputs * passes.positions);
  uint16_t* row = rows.data();
  passes.for_each([&](int64_t first, int64_t count) {
    for (int64_t o = 0; o < weight.outputs; ++o) {
      for (int64_t q = first; q < first + count; ++q) {
        const int64_t bytes = (q - first) * passes.table_bytes + code_at(weight, o, q) * row_bytes;
        *row++ = static_cast<uint16_t>(bytes / kTableStep);
      }
    }
  });
  return rows;
}

}  // namespace pyquant
