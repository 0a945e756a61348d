// Weights that a model keeps decoded, so that no run has to: plans share them, within a budget of memory.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

#include "base/aligned_buffer.h"
#include "base/fork_mutex.h"
#include "runtime/graph.h"

namespace pyquant {

// Safe to call from several threads; `decode` must not call back.
class KeptWeights {
 public:
  explicit KeptWeights(int64_t budget_bytes) : budget_bytes_(budget_bytes) {}

  template <typename T>
  using Values = std::shared_ptr<const AlignedBuffer<T>>;

  // The `size` values that decode(values) writes, which it does once for each weight, type and order of the values,
  // whose name is any; null where they are larger than what is left of the budget.
  template <typename T, typename Decode>
  Values<T> get(const std::shared_ptr<const Weight>& weight, const std::string& order, int64_t size,
                const Decode& decode) {
    const std::lock_guard lock(mutex_);
    const auto key = std::pair(weight, order);
    const auto found = of<T>().find(key);
    if (found != of<T>().end()) return found->second;
    if (size > (budget_bytes_ - bytes_) / static_cast<int64_t>(sizeof(T))) return nullptr;
    AlignedBuffer<T> values(size);
    decode(values.data());
    bytes_ += size * static_cast<int64_t>(sizeof(T));
    return of<T>()[key] = std::make_shared<const AlignedBuffer<T>>(std::move(values));
  }

  int64_t bytes() {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }

 private:
  template <typename T>
  using Map = std::map<std::pair<std::shared_ptr<const Weight>, std::string>, Values<T>>;

  template <typename T>
  Map<T>& of() {
    return std::get<Map<T>>(values_);
  }

  ForkMutex mutex_;
  const int64_t budget_bytes_;
  int64_t bytes_ = 0;
  std::tuple<Map<float>, Map<uint32_t>> values_;
};

}  // namespace pyquant
