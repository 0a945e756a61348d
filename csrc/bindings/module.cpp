// The extension module pyquant._core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/cpu_count.h"
#include "bindings/byte_kernels.h"
#include "bindings/codec.h"
#include "bindings/convert.h"
#include "bindings/kernels.h"
#include "bindings/learning.h"
#include "bindings/pictures.h"
#include "runtime/model.h"
#include "runtime/ops/ops.h"

namespace pyquant {

using namespace py::literals;

namespace {

struct Arrays {
  std::vector<const float*> inputs;
  std::vector<float*> outputs;
  py::list results;
};

Arrays connect(const Model& model, const Plan& plan, const std::vector<Array<float>>& inputs) {
  Arrays arrays;
  if (inputs.size() != model.graph().inputs.size()) throw Error("the number of inputs is off");
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Shape shape(inputs[i].shape(), inputs[i].shape() + inputs[i].ndim());
    if (shape != plan.shapes[model.graph().inputs[i]]) throw Error("the plan was made for inputs of other shapes");
    arrays.inputs.push_back(inputs[i].data());
  }
  for (const ValueId value : plan.outputs) {
    Array<float> result(plan.shapes[value]);
    arrays.outputs.push_back(result.mutable_data());
    arrays.results.append(std::move(result));
  }
  return arrays;
}

// What `measure` finds of an instruction set.
template <double (*measure)(const KernelTable&)>
double peak_of(const std::string& isa) {
  const KernelTable kernels = select_kernels(isa);
  const py::gil_scoped_release no_gil;
  return measure(kernels);
}

}  // namespace
}  // namespace pyquant

PYBIND11_MODULE(_core, m) {
  using namespace pyquant;
  m.doc() = "The native core of pyquant: kernels, plans and runs.";

  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      py::set_error(py::module_::import("pyquant.errors").attr("InputError"), error.what());
    }
  });

  m.def("available_isas", &available_isas, "Instruction sets that run here, best last; 'reference' is the first.");
  m.def("kernel_names", &kernel_names, "fast"_a,
        "Kernels of convolutions and linear layers among which plans choose, those in integers only if `fast`.");
  m.def("default_threads", &available_cpus, "Processors that this process may use.");
  m.def("peak_gmacs", &peak_of<&measure_peak>, "isa"_a,
        "Measured fp32 multiply-accumulates per nanosecond of one core, in registers.");
  m.def("peak8_gmacs", &peak_of<&measure_peak8>, "isa"_a,
        "The same of bytes, by the register tile on inputs in the first-level cache.");
  register_kernels(m);
  register_byte_kernels(m);
  register_codec(m);
  register_learning(m);
  register_pictures(m);

  py::class_<Plan, std::shared_ptr<Plan>>(m, "Plan", "Everything decided before the first run, for given input shapes.")
      .def_property_readonly(
          "arena_bytes", [](const Plan& plan) { return plan.placement.total * static_cast<int64_t>(sizeof(float)); },
          "Bytes that the values of one run share.");

  py::class_<Model>(m, "Model", "A network on the native kernels; pyquant.runtime.Model is its face.")
      .def(py::init([](const py::list& weights, const py::list& nodes, std::vector<ValueId> inputs,
                       std::vector<ValueId> outputs, int32_t num_values, bool fast,
                       const std::optional<Array<float>>& ranges, int threads, const std::string& isa,
                       const std::string& kernel, int64_t memory_budget) {
             return std::make_unique<Model>(
                 graph_from_python(weights, nodes, std::move(inputs), std::move(outputs), num_values), fast,
                 ranges_from_python(ranges, num_values), threads, isa, kernel, memory_budget);
           }),
           "weights"_a, "nodes"_a, "inputs"_a, "outputs"_a, "num_values"_a, "fast"_a, "ranges"_a, "threads"_a, "isa"_a,
           "kernel"_a, "memory_budget"_a)
      .def_property_readonly("isa", &Model::isa)
      .def_property_readonly("threads", &Model::threads)
      .def_property_readonly("kept_bytes", &Model::kept_bytes, "Bytes of weights that are kept decoded.")
      .def("find_plan", &Model::find_plan, "inputs"_a, "The plan for inputs of these shapes, or None.")
      .def("make_plan", &Model::make_plan, "values"_a, "choices"_a, py::call_guard<py::gil_scoped_release>(),
           "Plan for values of these shapes, by value number, with the kernels chosen for layers by name.")
      .def(
          "run",
          [](Model& model, const Plan& plan, const std::vector<Array<float>>& inputs) {
            Arrays arrays = connect(model, plan, inputs);
            {
              const py::gil_scoped_release no_gil;
              model.run(plan, arrays.inputs, arrays.outputs);
            }
            return arrays.results;
          },
          "plan"_a, "inputs"_a, "The network's outputs.")
      .def(
          "profile",
          [](Model& model, const Plan& plan, const std::vector<Array<float>>& inputs) {
            Arrays arrays = connect(model, plan, inputs);
            std::vector<double> ms(plan.steps.size());
            {
              const py::gil_scoped_release no_gil;
              model.run(plan, arrays.inputs, arrays.outputs, ms);
            }
            py::list steps;
            for (size_t i = 0; i < ms.size(); ++i) {
              const Step& step = *plan.steps[i];
              steps.append(py::dict("name"_a = step.name(), "op"_a = step.op(), "kernel"_a = step.kernel(),
                                    "candidates"_a = step.candidates(), "ms"_a = ms[i]));
            }
            return steps;
          },
          "plan"_a, "inputs"_a,
          "Each step of one run: name, op, kernel, the kernels it was chosen from, and milliseconds.");
}
