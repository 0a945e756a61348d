#include "bindings/byte_kernels.h"

#include <pybind11/stl.h>

#include "bindings/convert.h"
#include "kernels/select.h"

namespace pyquant {

using namespace py::literals;

void register_byte_kernels(py::module_& m) {
  m.def(
      "gemm_tile8",
      [](const std::optional<Array<uint16_t>>& at, const Array<uint32_t>& codebook, const Array<uint32_t>& panel,
         const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        const int64_t pixels = panel.shape(1), blocks = at ? at->shape(0) : 1;
        const AlignedBuffer<uint32_t> centroids = copied(codebook), inputs = copied(panel);
        AlignedBuffer<int32_t> out(kernels.tile8.rows * kernels.tile8.pixels);
        const std::vector<int32_t> rows = rows_apart(panel.shape(0), pixels);
        kernels.gemm_tile8(at ? at->data() : nullptr, centroids.data(), panel.shape(0) / blocks, blocks, inputs.data(),
                           rows.data(), out.data(), kernels.tile8.pixels, pixels);
        return to_array(out, {kernels.tile8.rows, kernels.tile8.pixels});
      },
      "at"_a, "codebook"_a, "panel"_a, "isa"_a,
      "The product of the d quads that begin at [J, rows] in a codebook, or of a matrix [rows, d], and panel [J * d, "
      "pixels].");

  m.def(
      "dot_rows8",
      [](const Array<uint32_t>& weights, const Array<uint32_t>& inputs, const std::string& isa) {
        const AlignedBuffer<uint32_t> rows = copied(weights), quads = copied(inputs);
        AlignedBuffer<int32_t> out(weights.shape(0));
        select_kernels(isa).dot_rows8(rows.data(), weights.shape(1), quads.data(), inputs.shape(0), out.data(), 1,
                                      weights.shape(0));
        return to_array(out, {weights.shape(0)});
      },
      "weights"_a, "inputs"_a, "isa"_a, "The product of quads of weights [rows, d] and inputs [d].");

  m.def(
      "decode_quads",
      [](const Array<uint16_t>& codes, const Array<int16_t>& values, int64_t rows, int64_t columns,
         const std::string& isa) {
        const AlignedBuffer<int16_t> parts = copied(values);
        AlignedBuffer<int8_t> bytes(parts.size());
        for (int64_t i = 0; i < parts.size(); ++i) bytes[i] = static_cast<int8_t>(parts[i]);
        const ByteCentroids centroids{.bytes = bytes.data(),
                                      .parts = parts.data(),
                                      .codebooks = codes.shape(0),
                                      .centroids = values.shape(1),
                                      .channels = values.shape(2),
                                      .rows = rows,
                                      .columns = columns};
        const int64_t outputs = codes.shape(1), positions = codes.shape(2) / centroids.n();
        const int64_t row_pitch = positions * centroids.quads() * columns;
        const std::vector<int32_t> begin = rows_apart(rows, row_pitch);
        AlignedBuffer<uint32_t> out(outputs * rows * row_pitch);
        select_kernels(isa).decode_quads(centroids, codes.data(), outputs * codes.shape(2), codes.shape(2),
                                         begin.data(), out.data(), rows * row_pitch, outputs, positions);
        return to_array(out, {outputs, rows, positions * centroids.quads(), columns});
      },
      "codes"_a, "values"_a, "rows"_a, "columns"_a, "isa"_a,
      "Quads [O, rows, quads, columns] of codes [M, O, J] and values [M, K, channels, width] that lie as "
      "decode_quads() "
      "wants them: bytes, or parts of bytes where M is more than 1.");

  m.def(
      "turn_quads",
      [](const Array<uint32_t>& in, int64_t pixels, const std::string& isa) {
        const int64_t taps = in.shape(0), pitch = in.shape(1), rows = 4 * ceil_div(taps, 4);
        const AlignedBuffer<uint32_t> quads = copied(in);
        AlignedBuffer<uint32_t> out(rows * pitch);
        select_kernels(isa).turn_quads(quads.data(), rows_apart(taps, pitch).data(), taps, pixels, out.data(), pitch);
        return to_array(out, {rows, pitch});
      },
      "inputs"_a, "pixels"_a, "isa"_a, "Quads of taps [4 * groups, pitch] from quads of channels [taps, pitch].");

  m.def(
      "table_sums8",
      [](const Array<uint16_t>& at, const Array<uint32_t>& codebook, const Array<uint32_t>& panel, int64_t pixels,
         int64_t shift, const std::optional<Array<int32_t>>& before, const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        const int64_t outputs = at.shape(0), positions = at.shape(1), dim = codebook.shape(1);
        const int64_t table = codebook.shape(0) * kernels.table8_pixels;
        const AlignedBuffer<uint32_t> centroids = copied(codebook), inputs = copied(panel);
        AlignedBuffer<int16_t> tables(positions * table);
        for (int64_t q = 0; q < positions; ++q) {
          kernels.table_build8(centroids.data(), codebook.shape(0), dim,
                               inputs.data() + q * dim * kernels.table8_pixels, pixels, shift,
                               tables.data() + q * table);
        }
        AlignedBuffer<int32_t> sums =
            before ? copied(*before) : AlignedBuffer<int32_t>(outputs * kernels.table8_pixels);
        kernels.table_sum8(at.data(), positions, tables.data(), sums.data(), outputs, pixels, before.has_value());
        return to_array(sums, {outputs, kernels.table8_pixels});
      },
      "at"_a, "codebook"_a, "panel"_a, "pixels"_a, "shift"_a, "before"_a, "isa"_a,
      "Sums [O, table pixels], added to `before` unless that is None, of the table rows that begin at [O, positions], "
      "in steps of 8 bytes: tables, scaled down by 2^shift, of codebook [K, d] and panel [positions * d, table "
      "pixels].");

  m.def(
      "finish_tile8",
      [](const Array<int32_t>& in, const Array<float>& scale, const Array<float>& bias,
         const std::optional<Array<uint32_t>>& residual, float residual_scale, uint8_t low, uint8_t high, bool plain,
         const Array<uint32_t>& out, const std::string& isa) {
        const AlignedBuffer<int32_t> sums = copied(in);
        const AlignedBuffer<float> scales = copied(scale), biases = copied(bias);
        const AlignedBuffer<uint32_t> before = residual ? copied(*residual) : AlignedBuffer<uint32_t>();
        AlignedBuffer<uint32_t> result = copied(out);
        const Finish8 finish{.scale = scales.data(),
                             .bias = biases.data(),
                             .residual = residual ? before.data() : nullptr,
                             .residual_scale = residual_scale,
                             .low = low,
                             .high = high,
                             .plain = plain};
        select_kernels(isa).finish_tile8(sums.data(), in.shape(1), finish, result.data(), out.shape(1), in.shape(0),
                                         in.shape(1));
        return to_array(result, {out.shape(0), out.shape(1)});
      },
      "inputs"_a, "scale"_a, "bias"_a, "residual"_a, "residual_scale"_a, "low"_a, "high"_a, "plain"_a, "out"_a, "isa"_a,
      "out [rows / 4, pitch] with the bytes of inputs [rows, pixels] written to its first pixels.");

  m.def(
      "quantize",
      [](const Array<float>& in, float inverse_scale, float zero, const std::string& isa) {
        const AlignedBuffer<float> values = copied(in);
        AlignedBuffer<uint32_t> out(in.shape(1));
        select_kernels(isa).quantize(values.data(), in.shape(1), in.shape(0), inverse_scale, zero, out.data(),
                                     in.shape(1));
        return to_array(out, {in.shape(1)});
      },
      "inputs"_a, "inverse_scale"_a, "zero"_a, "isa"_a, "Quads [pixels] of inputs [up to 4, pixels].");

  m.def(
      "dequantize",
      [](const Array<uint32_t>& in, int64_t rows, float scale, float zero, const std::string& isa) {
        const AlignedBuffer<uint32_t> quads = copied(in);
        AlignedBuffer<float> out(rows * in.size());
        select_kernels(isa).dequantize(quads.data(), scale, zero, out.data(), in.size(), rows, in.size());
        return to_array(out, {rows, in.size()});
      },
      "inputs"_a, "rows"_a, "scale"_a, "zero"_a, "isa"_a,
      "Floats [rows, pixels] of the first bytes of quads [pixels].");

  m.def(
      "max_row8",
      [](const Array<uint32_t>& in, int64_t step, const Array<uint32_t>& out, const std::string& isa) {
        const AlignedBuffer<uint32_t> inputs = copied(in);
        AlignedBuffer<uint32_t> result = copied(out);
        select_kernels(isa).max_row8(inputs.data(), step, result.data(), out.size());
        return to_array(result, {out.size()});
      },
      "inputs"_a, "step"_a, "out"_a, "isa"_a, "The larger byte of out and of every step-th of inputs.");
}

}  // namespace pyquant
