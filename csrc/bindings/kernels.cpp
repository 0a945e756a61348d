#include "bindings/kernels.h"

#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "kernels/select.h"

namespace pyquant {

using namespace py::literals;

namespace {

// Copies with slack behind them, as kernels demand.
AlignedBuffer<float> copied(const Array<float>& array) { return AlignedBuffer<float>(as_span(array)); }

Array<float> to_array(const AlignedBuffer<float>& buffer, std::vector<py::ssize_t> shape) {
  return Array<float>(std::move(shape), buffer.data());
}

}  // namespace

void register_kernels(py::module_& m) {
  m.def(
      "kernel_tile",
      [](const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        return py::dict("lanes"_a = kernels.lanes, "rows"_a = kernels.tile_rows, "pixels"_a = kernels.tile_pixels,
                        "table_pixels"_a = kernels.table_pixels, "blocks_per_pass"_a = kBlocksPerPass);
      },
      "isa"_a, "Lanes of a vector, and the rows, pixels and blocks that the kernels of an instruction set take.");

  m.def(
      "gemm_tile",
      [](const Array<float>& a, const Array<float>& b, const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        const int64_t rows = a.shape(0), depth = a.shape(1), pixels = b.shape(1);
        const int64_t pitch = round_up(pixels, kernels.lanes);
        const AlignedBuffer<float> left = copied(a), right = copied(b);
        AlignedBuffer<float> out(rows * pitch);
        kernels.gemm_tile(left.data(), depth, right.data(), pixels, out.data(), pitch, rows, pixels, depth);
        return to_array(out, {rows, pitch});
      },
      "a"_a, "b"_a, "isa"_a,
      "The product of a [rows, depth] and b [depth, pixels], its rows rounded up to whole vectors.");

  m.def(
      "decode_rows",
      [](const Array<uint16_t>& codes, const Array<float>& codebook, const std::string& isa) {
        const int64_t books = codes.shape(0), rows = codes.shape(1), blocks = codes.shape(2);
        const int64_t centroids = codebook.shape(1), dim = codebook.shape(2);
        const AlignedBuffer<float> centroid_values = copied(codebook);
        AlignedBuffer<float> out(rows * blocks * dim);
        for (int64_t book = 0; book < books; ++book) {
          select_kernels(isa).decode_rows(codes.data() + book * rows * blocks, blocks,
                                          centroid_values.data() + book * centroids * dim, dim, out.data(),
                                          blocks * dim, rows, blocks, book > 0);
        }
        return to_array(out, {rows, blocks * dim});
      },
      "codes"_a, "codebook"_a, "isa"_a, "Weights [O, J * d] of codes [M, O, J] and codebooks [M, K, d].");

  m.def(
      "table_sum",
      [](const Array<uint16_t>& codes, const Array<float>& table, const Array<float>& sums, const std::string& isa) {
        const AlignedBuffer<float> rows = copied(table);
        AlignedBuffer<float> out = copied(sums);
        select_kernels(isa).table_sum(codes.data(), rows.data(), table.shape(1) * table.shape(2), out.data(),
                                      codes.shape(0));
        return to_array(out, {sums.shape(0), sums.shape(1)});
      },
      "codes"_a, "table"_a, "sums"_a, "isa"_a,
      "sums [O, pixels] plus, for each output, the rows of table [blocks, K, pixels] that codes [O, blocks] name.");

  m.def(
      "finish_tile",
      [](const Array<float>& in, const Array<float>& scale, const Array<float>& bias,
         const std::optional<Array<float>>& residual, float low, float high, const std::string& isa) {
        const int64_t rows = in.shape(0), count = in.shape(1);
        const int64_t pitch = count + 1;
        const AlignedBuffer<float> values = copied(in);
        AlignedBuffer<float> added(rows * pitch);
        AlignedBuffer<float> out(rows * pitch);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t p = 0; residual && p < count; ++p) added[r * pitch + p] = residual->data()[r * count + p];
          // One value more than asked for, to show that it is left alone.
          out[r * pitch + count] = -1.0f;
        }
        select_kernels(isa).finish_tile(values.data(), count, scale.data(), bias.data(),
                                        residual ? added.data() : nullptr, low, high, out.data(), pitch, rows, count);
        return to_array(out, {rows, pitch});
      },
      "values"_a, "scale"_a, "bias"_a, "residual"_a, "low"_a, "high"_a, "isa"_a,
      "The epilogue of values [rows, count], and behind each row a -1 that the kernel must not touch.");
}

}  // namespace pyquant
