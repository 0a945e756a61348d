// A step of a plan: one operation with everything decided, so that running it checks nothing.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/sizes.h"
#include "base/thread_pool.h"
#include "kernels/kernels.h"
#include "runtime/activation.h"
#include "runtime/graph.h"
#include "runtime/kept_weights.h"
#include "runtime/quantization.h"

namespace pyquant {

// Where the values of one run lie, and what it runs on.
struct RunState {
  uint32_t* quads(ValueId value) const { return reinterpret_cast<uint32_t*>(values[value]); }

  std::vector<float*> values;            // by ValueId; null for values that no step needs
  Quantization* quantization = nullptr;  // by ValueId, of values in bytes: known before, or set by the step that writes
  std::vector<float*> scratch;           // by worker: Plan::scratch_floats each
  float* shared = nullptr;               // for all workers together: Plan::shared_floats
  ThreadPool* pool = nullptr;
};

class Step {
 public:
  Step(std::string name, std::string op, std::string kernel)
      : name_(std::move(name)), op_(std::move(op)), kernel_(std::move(kernel)) {}
  virtual ~Step() = default;

  virtual void run(const RunState& state) const = 0;

  // Floats that each worker needs as scratch memory.
  virtual int64_t scratch_floats() const { return 0; }

  // Floats that all workers need together.
  virtual int64_t shared_floats() const { return 0; }

  const std::string& name() const { return name_; }
  const std::string& op() const { return op_; }
  const std::string& kernel() const { return kernel_; }

  // Kernels that could have been chosen, this one among them, in no particular order; empty where there is no choice.
  const std::vector<std::string>& candidates() const { return candidates_; }
  void set_candidates(std::vector<std::string> candidates) { candidates_ = std::move(candidates); }

 private:
  std::string name_;
  std::string op_;
  std::string kernel_;
  std::vector<std::string> candidates_;
};

// An operation after fusion, with its shapes: what a step is planned from.
struct Layer {
  const Node* node = nullptr;  // null: a conversion between formats
  std::vector<ValueId> inputs;
  ValueId output = 0;
  ValueId residual = -1;  // added to the layer's output before the activation; -1: none
  Activation activation = Activation::kNone;
  std::string op;  // as `profile` shows it, fused operations joined by "+"

  std::vector<ValueId> values_read() const {
    std::vector<ValueId> values = inputs;
    if (residual >= 0) values.push_back(residual);
    return values;
  }
};

// Kernels by the name of the layer that they are wanted for; where one does not apply, a direct one runs.
using KernelChoices = std::map<std::string, std::string>;

// How a value lies in memory: [N, C, P] floats, or [N, C / 4 rounded up, P] quads.
enum class Format { kFloats, kBytes };

// The memory of a value, in values of four bytes.
inline int64_t size_of(const Shape& shape, Format format) {
  if (format == Format::kFloats) return checked_product(shape);
  Shape quads = shape;
  quads.at(1) = ceil_div(quads.at(1), kQuad);
  return checked_product(quads);
}

struct PlanContext {
  const KernelTable* kernels = nullptr;
  bool fast = false;           // whether integer kernels may be chosen
  std::string default_kernel;  // wanted for layers that `choices` does not name; "": the cheapest by estimate
  KernelChoices choices;
  int threads = 1;
  KeptWeights* kept = nullptr;
  std::vector<Shape> shapes;                        // by ValueId
  std::vector<Format> formats;                      // by ValueId
  std::vector<int64_t> parts;                       // by ValueId: that each image lies in, see parts.h
  std::vector<std::optional<Quantization>> ranges;  // by ValueId: of those whose bytes are known before they are run

  const std::string& wanted(const std::string& layer) const {
    const auto found = choices.find(layer);
    return found == choices.end() ? default_kernel : found->second;
  }
};

}  // namespace pyquant
