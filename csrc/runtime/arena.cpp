#include "runtime/arena.h"

#include <algorithm>
#include <numeric>

#include "base/aligned_buffer.h"

namespace pyquant {

Placement place(const std::vector<Lifetime>& lifetimes, int64_t slack) {
  constexpr int64_t kLine = kAlignment / static_cast<int64_t>(sizeof(float));
  const auto room = [&](const Lifetime& l) { return round_up(l.floats + slack, kLine); };

  std::vector<size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].floats > lifetimes[b].floats; });

  Placement result{.offsets = std::vector<int64_t>(lifetimes.size(), -1)};
  std::vector<size_t> placed;  // by rising offset
  for (const size_t value : order) {
    const Lifetime& life = lifetimes[value];
    if (life.floats == 0) continue;
    int64_t offset = 0;
    for (const size_t other : placed) {
      const Lifetime& held = lifetimes[other];
      if (held.last < life.first || life.last < held.first) continue;
      if (offset + room(life) <= result.offsets[other]) break;
      offset = std::max(offset, result.offsets[other] + room(held));
    }
    result.offsets[value] = offset;
    result.total = std::max(result.total, offset + room(life));
    placed.insert(std::upper_bound(placed.begin(), placed.end(), offset,
                                   [&](int64_t o, size_t p) { return o < result.offsets[p]; }),
                  value);
  }
  return result;
}

}  // namespace pyquant
