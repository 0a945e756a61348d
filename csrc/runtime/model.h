// A loaded network: immutable weights, plans for the shapes it has met, and runs, of which several may go on at once.
#pragma once

#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fork_mutex.h"
#include "base/thread_pool.h"
#include "kernels/select.h"
#include "runtime/plan.h"

namespace pyquant {

class Model {
 public:
  // fast: whether integer kernels may run; ranges: of the graph's values as bytes, by ValueId, as far as they are
  // known; isa: as select_kernels() takes it; threads >= 1; kernel: wanted for every layer, "" for the cheapest by
  // estimate; budget_bytes: for weights that are kept decoded.
  Model(Graph graph, bool fast, std::vector<std::optional<Quantization>> ranges, int threads, const std::string& isa,
        std::string kernel, int64_t budget_bytes);

  const std::string& isa() const { return isa_; }
  int threads() const { return pool_.threads(); }
  int64_t kept_bytes() { return kept_.bytes(); }

  // The plan for inputs of these shapes, or null if it has to be made first.
  std::shared_ptr<Plan> find_plan(const std::vector<Shape>& inputs);

  // Make the plan for values of these shapes, given by ValueId; it takes the place of any other for these inputs.
  std::shared_ptr<Plan> make_plan(std::vector<Shape> values, KernelChoices choices);

  // Run: inputs and outputs are contiguous and have the plan's shapes. step_ms, unless empty, holds zeros, to which
  // each step's time is added.
  void run(const Plan& plan, std::span<const float* const> inputs, std::span<float* const> outputs,
           std::span<double> step_ms = {});

  const Graph& graph() const { return graph_; }

 private:
  // The memory of one run, kept for the next one on the same plan.
  struct Session {
    AlignedBuffer<float> arena;
    AlignedBuffer<float> scratch;
    AlignedBuffer<float> shared;
    std::vector<Quantization> quantization;
    RunState state;
  };
  struct Entry {
    std::vector<Shape> inputs;
    std::shared_ptr<Plan> plan;
    std::vector<std::unique_ptr<Session>> idle;
  };

  std::unique_ptr<Session> take_session(const Plan& plan);
  void give_back(const Plan& plan, std::unique_ptr<Session> session);

  Graph graph_;
  bool fast_;
  std::vector<std::optional<Quantization>> ranges_;
  KernelTable kernels_;
  std::string isa_;
  std::string kernel_;
  ThreadPool pool_;
  KeptWeights kept_;
  ForkMutex mutex_;         // guards plans_
  std::list<Entry> plans_;  // most recently used first
};

}  // namespace pyquant
