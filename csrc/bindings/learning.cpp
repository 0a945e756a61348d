#include "bindings/learning.h"

#include <pybind11/stl.h>

#include <optional>

#include "bindings/convert.h"
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

Array<float> copy_of(const Array<float>& array) {
  return Array<float>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()), array.data());
}

Array<float> empty_like(const Array<float>& array) {
  return Array<float>(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()));
}

}  // namespace

void register_learning(py::module_& m) {
  m.def(
      "sweep_panel",
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
          sweep_panel(grids, inputs, gram.data(), at_slopes, at_result, at_change);
        }
        return py::make_tuple(result, change);
      },
      "slope"_a, "gram"_a, "codes"_a, "step"_a, "zero"_a, "importance"_a, "levels"_a, "prices"_a, "kept"_a,
      "Codes [G, R, P], each the best one in turn, and how weights changed: see csrc/learn/grid_descent.h.");

  m.def(
      "feedback_panel",
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
          feedback_panel(grids, inputs, lower.data(), target.data(), at_missed, at_codes, at_error);
        }
        return py::make_tuple(codes, error);
      },
      "target"_a, "missed"_a, "lower"_a, "step"_a, "zero"_a, "importance"_a, "levels"_a, "prices"_a, "kept"_a,
      "Codes [G, R, P] that make up for each other, and what they miss: see csrc/learn/grid_descent.h.");
}

}  // namespace pyquant
