#include "bindings/learning.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/convert.h"
#include "learn/codebook_descent.h"
#include "learn/grid_descent.h"

namespace pyquant {

using namespace py::literals;

namespace {

using Optional = std::optional<Array<float>>;

template <typename T>
void expect_shape(const char* name, const Array<T>& array, const std::vector<int64_t>& shape) {
  const std::vector<int64_t> found(array.shape(), array.shape() + array.ndim());
  if (found != shape) throw Error(std::string("the shape of '") + name + "' is off");
}

// The grids of the outputs of a panel [G, R, P].
OutputGrids checked_grids(const Array<float>& panel, const Array<float>& step, const Array<float>& zero,
                          const Array<float>& importance, int64_t levels, const Optional& prices,
                          const std::optional<Array<bool>>& kept) {
  if (panel.ndim() != 3) throw Error("expected panels [G, R, P]");
  const std::vector<int64_t> outputs{panel.shape(0), panel.shape(1)};
  expect_shape("step", step, outputs);
  expect_shape("zero", zero, outputs);
  expect_shape("importance", importance, outputs);
  if (levels < 1) throw Error("grids have levels");
  if (prices) expect_shape("prices", *prices, {levels});
  if (kept) expect_shape("kept", *kept, {outputs[0], outputs[1], panel.shape(2)});
  for (const float half_steps : as_span(zero)) {
    if (!(half_steps >= 0 && half_steps <= static_cast<float>(2 * levels - 2))) throw Error("a zero is off its grid");
  }
  return {.groups = outputs[0],
          .outputs = outputs[1],
          .levels = levels,
          .step = step.data(),
          .zero = zero.data(),
          .importance = importance.data(),
          .prices = prices ? prices->data() : nullptr,
          .kept = kept ? kept->data() : nullptr};
}

// Blocks of a panel [G, R, P].
BlockPanel checked_blocks(const Array<float>& panel, const Array<float>& codebooks, int64_t beams,
                          const Optional& prices = {}, const Optional& markups = {}) {
  if (panel.ndim() != 3 || codebooks.ndim() != 3) throw Error("expected panels [G, R, P] and codebooks [M, K, d]");
  const Codebooks centroids{.values = codebooks.data(),
                            .codebooks = codebooks.shape(0),
                            .centroids = codebooks.shape(1),
                            .dim = codebooks.shape(2)};
  if (codebooks.size() == 0 || panel.shape(2) % centroids.dim != 0) throw Error("codebooks do not fit the panel");
  if (beams < 1) throw Error("a search keeps at least one sum");
  if (prices.has_value() != markups.has_value()) throw Error("prices have markups");
  if (prices) expect_shape("prices", *prices, {centroids.codebooks, centroids.centroids});
  if (markups) expect_shape("markups", *markups, {panel.shape(0), panel.shape(1)});
  return {.groups = panel.shape(0),
          .outputs = panel.shape(1),
          .blocks = panel.shape(2) / centroids.dim,
          .centroids = centroids,
          .beams = beams,
          .prices = prices ? prices->data() : nullptr,
          .markups = markups ? markups->data() : nullptr};
}

std::vector<int64_t> codes_shape(const BlockPanel& panel) {
  return {panel.centroids.codebooks, panel.groups, panel.outputs, panel.blocks};
}

template <typename T>
Array<T> copy_of(const Array<T>& array) {
  return Array<T>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()), array.data());
}

Array<float> empty_like(const Array<float>& array) {
  return Array<float>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

}  // namespace

void register_learning(py::module_& m) {
  m.def(
      "sweep_grids",
      [](const Array<float>& slope, const Array<float>& gram, const Array<float>& codes, const Array<float>& step,
         const Array<float>& zero, const Array<float>& importance, int64_t levels, const Optional& prices,
         const std::optional<Array<bool>>& kept) {
        const OutputGrids grids = checked_grids(slope, step, zero, importance, levels, prices, kept);
        const int64_t inputs = slope.shape(2);
        expect_shape("gram", gram, {grids.groups, inputs, inputs});
        expect_shape("codes", codes, {grids.groups, grids.outputs, inputs});
        Array<float> slopes = copy_of(slope), result = copy_of(codes), change = empty_like(codes);
        float *const at_slopes = slopes.mutable_data(), *const at_result = result.mutable_data();
        float* const at_change = change.mutable_data();
        {
          const py::gil_scoped_release no_gil;
          sweep_grids(grids, inputs, gram.data(), at_slopes, at_result, at_change);
        }
        return py::make_tuple(result, change);
      },
      "slope"_a, "gram"_a, "codes"_a, "step"_a, "zero"_a, "importance"_a, "levels"_a, "prices"_a, "kept"_a,
      "Codes [G, R, P], each the best one in turn, and how weights changed: see csrc/learn/grid_descent.h.");

  m.def(
      "feedback_grids",
      [](const Array<float>& target, const Array<float>& missed, const Array<float>& lower, const Array<float>& step,
         const Array<float>& zero, const Array<float>& importance, int64_t levels, const Optional& prices,
         const std::optional<Array<bool>>& kept) {
        const OutputGrids grids = checked_grids(target, step, zero, importance, levels, prices, kept);
        const int64_t inputs = target.shape(2);
        expect_shape("missed", missed, {grids.groups, grids.outputs, inputs});
        expect_shape("lower", lower, {grids.groups, inputs, inputs});
        Array<float> kept_up = copy_of(missed), codes = empty_like(target), error = empty_like(target);
        float *const at_missed = kept_up.mutable_data(), *const at_codes = codes.mutable_data();
        float* const at_error = error.mutable_data();
        {
          const py::gil_scoped_release no_gil;
          feedback_grids(grids, inputs, lower.data(), target.data(), at_missed, at_codes, at_error);
        }
        return py::make_tuple(codes, error);
      },
      "target"_a, "missed"_a, "lower"_a, "step"_a, "zero"_a, "importance"_a, "levels"_a, "prices"_a, "kept"_a,
      "Codes [G, R, P] that make up for each other, and what they miss: see csrc/learn/grid_descent.h.");

  m.def(
      "sweep_blocks",
      [](const Array<float>& slope, const Array<float>& gram, const Array<int64_t>& codes,
         const Array<float>& codebooks, int64_t beams, const Optional& prices, const Optional& markups) {
        const BlockPanel panel = checked_blocks(slope, codebooks, beams, prices, markups);
        expect_shape("gram", gram, {panel.groups, panel.inputs(), panel.inputs()});
        expect_shape("codes", codes, codes_shape(panel));
        for (const int64_t code : as_span(codes)) {
          if (code < 0 || code >= panel.centroids.centroids) throw Error("a code is no centroid's");
        }
        Array<float> slopes = copy_of(slope), change = empty_like(slope);
        Array<int64_t> result = copy_of(codes);
        float *const at_slopes = slopes.mutable_data(), *const at_change = change.mutable_data();
        int64_t* const at_result = result.mutable_data();
        {
          const py::gil_scoped_release no_gil;
          sweep_blocks(panel, gram.data(), at_slopes, at_result, at_change);
        }
        return py::make_tuple(result, change);
      },
      "slope"_a, "gram"_a, "codes"_a, "codebooks"_a, "beams"_a, "prices"_a, "markups"_a,
      "Codes [M, G, R, J], each block's better in turn, and how weights changed: see csrc/learn/codebook_descent.h.");

  m.def(
      "feedback_blocks",
      [](const Array<float>& target, const Array<float>& missed, const Array<float>& lower,
         const Array<float>& codebooks, int64_t beams) {
        const BlockPanel panel = checked_blocks(target, codebooks, beams);
        expect_shape("missed", missed, {panel.groups, panel.outputs, panel.inputs()});
        expect_shape("lower", lower, {panel.groups, panel.inputs(), panel.inputs()});
        Array<float> kept_up = copy_of(missed), error = empty_like(target);
        Array<int64_t> codes(codes_shape(panel));
        float *const at_missed = kept_up.mutable_data(), *const at_error = error.mutable_data();
        int64_t* const at_codes = codes.mutable_data();
        {
          const py::gil_scoped_release no_gil;
          feedback_blocks(panel, lower.data(), target.data(), at_missed, at_codes, at_error);
        }
        return py::make_tuple(codes, error);
      },
      "target"_a, "missed"_a, "lower"_a, "codebooks"_a, "beams"_a,
      "Codes [M, G, R, J] that make up for each other, and what they miss: see csrc/learn/codebook_descent.h.");
}

}  // namespace pyquant
