#include "base/cache_size.h"

#include <unistd.h>

namespace pyquant {
namespace {

int64_t positive_or(int64_t bytes, int64_t usual) { return bytes > 0 ? bytes : usual; }

}  // namespace

int64_t first_level_cache() {
  constexpr int64_t kUsual = 32 * 1024;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  return positive_or(sysconf(_SC_LEVEL1_DCACHE_SIZE), kUsual);
#else
  return kUsual;
#endif
}

int64_t second_level_cache() {
  constexpr int64_t kUsual = 1024 * 1024;
#ifdef _SC_LEVEL2_CACHE_SIZE
  return positive_or(sysconf(_SC_LEVEL2_CACHE_SIZE), kUsual);
#else
  return kUsual;
#endif
}

}  // namespace pyquant
