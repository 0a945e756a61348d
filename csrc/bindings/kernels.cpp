#include "bindings/kernels.h"

#include <pybind11/stl.h>

#include <map>

#include "bindings/convert.h"
#include "kernels/select.h"

namespace pyquant {

using namespace py::literals;

void register_kernels(py::module_& m) {
  m.def(
      "kernel_tile",
      [](const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        return py::dict("lanes"_a = kernels.lanes, "rows"_a = kernels.tile.rows, "pixels"_a = kernels.tile.pixels,
                        "table_pixels"_a = kernels.table_pixels, "rows8"_a = kernels.tile8.rows,
                        "pixels8"_a = kernels.tile8.pixels, "adds_in_pairs"_a = kernels.adds_in_pairs,
                        "table8_pixels"_a = kernels.table8_pixels);
      },
      "isa"_a, "Lanes of a vector, and the rows and pixels that the kernels of an instruction set take.");

  m.def(
      "pack_rows",
      [](const Array<int64_t>& runs, int64_t step, const Array<float>& in, const Array<int64_t>& rows, uint32_t outside,
         const Array<float>& panel, const std::string& isa) {
        std::vector<PanelRun> pieces;
        for (int64_t i = 0; i < runs.shape(0); ++i) {
          pieces.push_back({.to = runs.at(i, 0), .size = runs.at(i, 1), .from = runs.at(i, 2)});
        }
        std::vector<PanelRow> targets;
        for (int64_t i = 0; i < rows.shape(0); ++i) targets.push_back({.row = rows.at(i, 0), .channel = rows.at(i, 1)});
        const AlignedBuffer<float> input = copied(in);
        AlignedBuffer<float> out = copied(panel);
        select_kernels(isa).pack_rows(pieces.data(), runs.shape(0), step, input.data(), in.shape(1), targets.data(),
                                      rows.shape(0), outside, out.data(), panel.shape(1));
        return to_array(out, {panel.shape(0), panel.shape(1)});
      },
      "runs"_a, "step"_a, "inputs"_a, "rows"_a, "outside"_a, "panel"_a, "isa"_a,
      "panel [D, pitch] with the runs (to, size, from) of its rows (row, channel) read from inputs [C, floats].");

  m.def(
      "gemm_tile",
      [](const std::optional<Array<uint16_t>>& at, const Array<float>& codebook, const Array<float>& panel,
         const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        const int64_t pixels = panel.shape(1), blocks = at ? at->shape(0) : 1;
        const AlignedBuffer<float> centroids = copied(codebook), inputs = copied(panel);
        AlignedBuffer<float> out(kernels.tile.rows * kernels.tile.pixels);
        const std::vector<int32_t> rows = rows_apart(panel.shape(0), pixels);
        kernels.gemm_tile(at ? at->data() : nullptr, centroids.data(), panel.shape(0) / blocks, blocks, inputs.data(),
                          rows.data(), out.data(), kernels.tile.pixels, pixels);
        return to_array(out, {kernels.tile.rows, kernels.tile.pixels});
      },
      "at"_a, "codebook"_a, "panel"_a, "isa"_a,
      "The product of the d weights that begin at [J, rows] in a codebook, or of a matrix [rows, d], and panel [J * d, "
      "pixels].");

  m.def(
      "dot_rows",
      [](const Array<float>& a, const Array<float>& x, const std::string& isa) {
        const int64_t rows = a.shape(0), columns = x.shape(0), depth = a.shape(1);
        const AlignedBuffer<float> weights = copied(a), inputs = copied(x);
        AlignedBuffer<float> out(rows * columns);
        select_kernels(isa).dot_rows(weights.data(), depth, inputs.data(), depth, out.data(), columns, rows, columns,
                                     depth);
        return to_array(out, {rows, columns});
      },
      "a"_a, "x"_a, "isa"_a, "The products [rows, columns] of each row of a [rows, D] with each of x [columns, D].");

  m.def(
      "winograd_input",
      [](const Array<float>& tiles, const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        const int64_t count = tiles.shape(0), side = tiles.shape(1), pitch = round_up(count, kernels.lanes);
        std::vector<WinogradRun> runs;
        for (int64_t t = 0; t < count; ++t) {
          WinogradRun& run = runs.emplace_back();
          run = {.tile = t, .size = 1, .from = {}, .begin = 0, .end = side};
          for (int64_t y = 0; y < side; ++y) run.from[y] = (t * side + y) * side;
        }
        const AlignedBuffer<float> inputs = copied(tiles);
        AlignedBuffer<float> out(side * side * pitch);
        const WinogradKernels& winograd = side == 4 ? kernels.winograd2 : kernels.winograd4;
        winograd.input(inputs.data(), inputs.size(), runs.data(), count, 1, count, out.data(), pitch, pitch);
        return to_array(out, {side * side, pitch});
      },
      "tiles"_a, "isa"_a, "The frequencies [(m + 2)², T] of the inputs [T, m + 2, m + 2] of each tile.");

  m.def(
      "winograd_output",
      [](const Array<float>& products, const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        const int64_t outputs = products.shape(0) == 16 ? 2 : 4;
        const int64_t tiles = products.shape(1);
        const int64_t pitch = outputs * round_up(tiles, kernels.lanes);
        const AlignedBuffer<float> in = copied(products);
        AlignedBuffer<float> lines(outputs * pitch);
        const WinogradKernels& winograd = outputs == 2 ? kernels.winograd2 : kernels.winograd4;
        winograd.output(in.data(), tiles, tiles, lines.data(), pitch);
        return to_array(lines, {outputs, pitch});
      },
      "products"_a, "isa"_a, "Lines [m, m * tiles] of outputs from products [(m + 2)², tiles] in frequencies.");

  m.def(
      "decode_rows",
      [](const Array<uint16_t>& codes, const Array<float>& codebook, const std::string& isa) {
        const int64_t books = codes.shape(0), rows = codes.shape(1), blocks = codes.shape(2);
        const int64_t dim = codebook.shape(2);
        const AlignedBuffer<float> values = copied(codebook);
        const Codebooks codebooks{
            .values = values.data(), .codebooks = books, .centroids = codebook.shape(1), .dim = dim};
        AlignedBuffer<float> out(rows * blocks * dim);
        select_kernels(isa).decode_rows(codebooks, codes.data(), rows * blocks, blocks, out.data(), blocks * dim, rows,
                                        blocks);
        return to_array(out, {rows, blocks * dim});
      },
      "codes"_a, "codebook"_a, "isa"_a, "Weights [O, J * d] of codes [M, O, J] and codebooks [M, K, d].");

  m.def(
      "table_build",
      [](const Array<float>& codebook, const Array<float>& panel, int64_t pixels, const std::string& isa) {
        const KernelTable kernels = select_kernels(isa);
        const AlignedBuffer<float> centroids = copied(codebook), inputs = copied(panel);
        AlignedBuffer<float> table(codebook.shape(0) * kernels.table_pixels);
        kernels.table_build(centroids.data(), codebook.shape(0), codebook.shape(1), inputs.data(), pixels,
                            table.data());
        return to_array(table, {codebook.shape(0), kernels.table_pixels});
      },
      "codebook"_a, "panel"_a, "pixels"_a, "isa"_a,
      "The product of codebook [K, d] and panel [d, table_pixels], of which `pixels` count.");

  m.def(
      "table_sum",
      [](const Array<uint16_t>& at, const Array<float>& tables, const std::optional<Array<float>>& sums, int64_t pixels,
         const std::string& isa) {
        const AlignedBuffer<float> rows = copied(tables);
        AlignedBuffer<float> out = sums ? copied(*sums) : AlignedBuffer<float>(at.shape(0) * tables.shape(2));
        select_kernels(isa).table_sum(at.data(), at.shape(1), rows.data(), out.data(), at.shape(0), pixels,
                                      sums.has_value());
        return to_array(out, {at.shape(0), tables.shape(2)});
      },
      "at"_a, "tables"_a, "sums"_a, "pixels"_a, "isa"_a,
      "For each output, the rows of tables [positions, K, table_pixels] that begin at [O, positions], in steps of 8 "
      "bytes, added up; to sums [O, table_pixels], unless that is None.");

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

  m.def(
      "curve",
      [](const std::string& name, const Array<float>& values, const std::string& isa) {
        const CurveKernels curves = select_kernels(isa).curves;
        AlignedBuffer<float> out = copied(values);
        const std::map<std::string, CurveFn> by_name = {{"sigmoid", curves.sigmoid},
                                                        {"silu", curves.silu},
                                                        {"hardsigmoid", curves.hardsigmoid},
                                                        {"hardswish", curves.hardswish}};
        by_name.at(name)(out.data(), values.size());
        return to_array(out, {values.size()});
      },
      "name"_a, "values"_a, "isa"_a, "The curve of an activation, by its name as an operation, at values [count].");

  m.def(
      "max_row",
      [](const Array<float>& in, int64_t step, const Array<float>& out, const std::string& isa) {
        const AlignedBuffer<float> inputs = copied(in);
        AlignedBuffer<float> result = copied(out);
        select_kernels(isa).max_row(inputs.data(), step, result.data(), out.size());
        return to_array(result, {out.size()});
      },
      "inputs"_a, "step"_a, "out"_a, "isa"_a, "The larger of out and of every step-th of inputs; a NaN is the larger.");
}

}  // namespace pyquant
