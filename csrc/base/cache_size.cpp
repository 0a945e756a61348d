#include "base/cache_size.h"

#include <unistd.h>

namespace pyquant {

int64_t first_level_cache() {
  constexpr int64_t kUsual = 32 * 1024;
#ifdef _SC_LEVEL1_DCACHE_SIZE
  const int64_t bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  return bytes > 0 ? bytes : kUsual;
#else
  return kUsual;
#endif
}

}  // namespace pyquant
