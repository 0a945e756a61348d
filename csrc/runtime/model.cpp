#include "runtime/model.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "base/denormals.h"

namespace pyquant {
namespace {

// Plans kept: enough for a few batch sizes or picture sizes in turn.
constexpr size_t kMostPlans = 4;

// Copy [N, C, ...] floats, of each plane a part by each thread: about that which it reads afterwards.
void copy_planes(const float* from, const Shape& shape, float* to, ThreadPool& pool) {
  const int64_t planes = shape.size() > 1 ? shape[0] * shape[1] : 1;
  const int64_t plane = checked_product(shape) / planes;
  const int64_t parts = pool.threads();
  pool.parallel_for(parts, [&](int64_t part, int) {
    const int64_t first = part * plane / parts;
    const int64_t end = (part + 1) * plane / parts;
    for (int64_t at = first; at < planes * plane; at += plane) std::copy_n(from + at, end - first, to + at);
  });
}

}  // namespace

Model::Model(Graph graph, bool fast, std::vector<std::optional<Quantization>> ranges, int threads,
             const std::string& isa, std::string kernel, int64_t budget_bytes)
    : graph_(std::move(graph)),
      fast_(fast),
      ranges_(std::move(ranges)),
      kernels_(select_kernels(isa)),
      isa_(kernels_.isa),
      kernel_(std::move(kernel)),
      pool_(threads),
      kept_(budget_bytes) {
  ranges_.resize(graph_.num_values);
}

std::shared_ptr<Plan> Model::find_plan(const std::vector<Shape>& inputs) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(plans_.begin(), plans_.end(), [&](const Entry& e) { return e.inputs == inputs; });
  if (found == plans_.end()) return nullptr;
  plans_.splice(plans_.begin(), plans_, found);
  return found->plan;
}

std::shared_ptr<Plan> Model::make_plan(std::vector<Shape> values, KernelChoices choices) {
  std::vector<Shape> inputs;
  for (const ValueId input : graph_.inputs) inputs.push_back(values.at(input));
  const size_t num_values = values.size();
  PlanContext context{.kernels = &kernels_,
                      .fast = fast_,
                      .default_kernel = kernel_,
                      .choices = std::move(choices),
                      .threads = pool_.threads(),
                      .kept = &kept_,
                      .shapes = std::move(values),
                      .formats = std::vector(num_values, Format::kFloats),
                      .parts = std::vector<int64_t>(num_values, 1),
                      .ranges = ranges_};
  auto plan = std::make_shared<Plan>(graph_, std::move(context));
  const std::lock_guard lock(mutex_);
  plans_.remove_if([&](const Entry& entry) { return entry.inputs == inputs; });
  plans_.push_front({.inputs = std::move(inputs), .plan = plan, .idle = {}});
  if (plans_.size() > kMostPlans) plans_.pop_back();
  return plan;
}

std::unique_ptr<Model::Session> Model::take_session(const Plan& plan) {
  {
    const std::lock_guard lock(mutex_);
    for (Entry& entry : plans_) {
      if (entry.plan.get() != &plan || entry.idle.empty()) continue;
      auto session = std::move(entry.idle.back());
      entry.idle.pop_back();
      return session;
    }
  }
  auto session = std::make_unique<Session>();
  session->arena = AlignedBuffer<float>(plan.placement.total);
  // Each worker's part ends with the slack that vector loads and stores may touch.
  const int64_t part = round_up(plan.scratch_floats + kSlackBytes / 4, kAlignment / 4);
  session->scratch = AlignedBuffer<float>(part * pool_.threads());
  std::fill_n(session->scratch.data(), session->scratch.size(), 0.0f);
  for (size_t value = 0; value < plan.storage.size(); ++value) {
    const int64_t offset = plan.placement.offsets[plan.storage[value]];
    session->state.values.push_back(offset < 0 ? nullptr : session->arena.data() + offset);
  }
  for (int worker = 0; worker < pool_.threads(); ++worker) {
    session->state.scratch.push_back(session->scratch.data() + worker * part);
  }
  session->shared = AlignedBuffer<float>(plan.shared_floats);
  std::fill_n(session->shared.data(), session->shared.size(), 0.0f);
  session->state.shared = session->shared.data();
  session->quantization = plan.quantization;
  session->state.quantization = session->quantization.data();
  session->state.pool = &pool_;
  return session;
}

void Model::give_back(const Plan& plan, std::unique_ptr<Session> session) {
  const std::lock_guard lock(mutex_);
  for (Entry& entry : plans_) {
    if (entry.plan.get() == &plan) {
      entry.idle.push_back(std::move(session));
      return;
    }
  }
}

void Model::run(const Plan& plan, std::span<const float* const> inputs, std::span<float* const> outputs,
                std::span<double> step_ms) {
  using Clock = std::chrono::steady_clock;
  const DenormalsAreZero denormals_are_zero;
  std::unique_ptr<Session> session = take_session(plan);
  RunState& state = session->state;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const ValueId value = graph_.inputs[i];
    copy_planes(inputs[i], plan.shapes[value], state.values[value], pool_);
  }
  const auto run_step = [&](int64_t i) {
    const auto start = Clock::now();
    plan.steps[i]->run(state);
    if (!step_ms.empty()) step_ms[i] += std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  };
  int64_t done = 0;
  for (const Section& section : plan.sections) {
    for (; done < section.first_step; ++done) run_step(done);
    run_section(section, state, run_step);
    done = section.end_step;
  }
  for (; done < static_cast<int64_t>(plan.steps.size()); ++done) run_step(done);
  for (size_t i = 0; i < outputs.size(); ++i) {
    const ValueId value = plan.outputs[i];
    std::copy_n(state.values[value], checked_product(plan.shapes[value]), outputs[i]);
  }
  give_back(plan, std::move(session));
}

}  // namespace pyquant
