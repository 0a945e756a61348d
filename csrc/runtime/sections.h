// Sections: layers that treat the rows of their values one by one are run with a chunk of the rows at a time.
//
// Rows are boxes or images. The heads of a detector make large values of each box, and most boxes may not be used: a
// chunk at a time, memory does not grow with the number of boxes, and chunks in which no row is used are passed over.
// Large values of many images are far away when the next layer reads them: of one for each thread, they are nearer, and
// take less memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/step.h"

namespace pyquant {

// A value that is there as a whole: of it, layers of the section see the rows of the chunk.
struct WholeValue {
  ValueId value;
  int64_t row_size;  // in values of four bytes
  bool is_written;
};

struct Section {
  size_t first_layer;
  size_t end_layer;
  int64_t first_step = 0;
  int64_t end_step = 0;
  int64_t rows;
  int64_t chunk;       // rows, at most `rows`
  ValueId boxes = -1;  // [rows, box_columns]: a row whose first number is negative is not used; -1: all are
  int64_t box_columns = 0;
  std::vector<ValueId> inner;     // values that are there for one chunk only
  std::vector<WholeValue> whole;  // read from before the section, or after it

  bool is_inner(ValueId value) const { return std::find(inner.begin(), inner.end(), value) != inner.end(); }
};

// The sections among `layers`; graph_outputs are read when all is done.
std::vector<Section> find_sections(const std::vector<Layer>& layers, const std::vector<ValueId>& graph_outputs,
                                   const PlanContext& context);

// Give the whole values of a section as many rows, in `shapes`: a chunk while its layers are planned, then all.
void set_rows(const Section& section, int64_t rows, std::vector<Shape>& shapes);

// Run the steps of a section, chunk by chunk, with `run(i)`; `state` is as before afterwards.
template <typename Run>
void run_section(const Section& section, RunState& state, const Run& run) {
  for (int64_t next = 0; next < section.rows; next += section.chunk) {
    // The last chunk is as large as the others: some rows are computed twice.
    const int64_t first = std::min(next, section.rows - section.chunk);
    bool is_used = section.boxes < 0;
    for (int64_t row = first; !is_used && row < first + section.chunk; ++row) {
      is_used = state.values[section.boxes][row * section.box_columns] >= 0;
    }
    for (const WholeValue& whole : section.whole) state.values[whole.value] += first * whole.row_size;
    for (int64_t step = section.first_step; is_used && step < section.end_step; ++step) run(step);
    for (const WholeValue& whole : section.whole) {
      if (!is_used && whole.is_written) {
        std::fill_n(state.values[whole.value], section.chunk * whole.row_size, 0.0f);
      }
      state.values[whole.value] -= first * whole.row_size;
    }
  }
}

}  // namespace pyquant
