// Steps between loads that a processor's prefetcher gets wrong.
#pragma once

#include <cstdint>

namespace pyquant {

// Whether loads of one instruction that are each so many bytes behind the last make a processor ask for wrong lines,
// perhaps such as another thread is about to write. Its prefetcher follows equal steps of up to 26 kB, but takes those
// of more than 32 kB for 64 kB less (measured on Emerald Rapids; from 96 kB on it follows none).
constexpr bool misleads_prefetcher(int64_t bytes) {
  constexpr int64_t kWrapped = 64 * 1024, kFollowed = 26 * 1024;
  return bytes >= kWrapped - kFollowed && bytes <= kWrapped + kFollowed;
}

}  // namespace pyquant
