// Python values to the core's: arrays, shapes and the description of a network.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>

#include "runtime/graph.h"
#include "runtime/quantization.h"

namespace pyquant {

namespace py = pybind11;

// forcecast is off: an array of another dtype is an error, not a silent copy.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
std::span<const T> as_span(const Array<T>& array) {
  return {array.data(), static_cast<size_t>(array.size())};
}

// A copy with slack behind it, as kernels demand.
template <typename T>
AlignedBuffer<T> copied(const Array<T>& array) {
  return AlignedBuffer<T>(as_span(array));
}

template <typename T>
Array<T> to_array(const AlignedBuffer<T>& buffer, std::vector<py::ssize_t> shape) {
  return Array<T>(std::move(shape), buffer.data());
}

// Build the graph that pyquant.runtime describes: see Model.__init__ in bindings/module.cpp.
Graph graph_from_python(const py::list& weights, const py::list& nodes, std::vector<ValueId> inputs,
                        std::vector<ValueId> outputs, int32_t num_values);

// How bytes stand for each value whose lowest and highest number [num_values, 2] are given.
std::vector<std::optional<Quantization>> ranges_from_python(const std::optional<Array<float>>& ranges,
                                                            int32_t num_values);

}  // namespace pyquant
