// How large the first-level cache is.
#pragma once

#include <cstdint>

namespace pyquant {

// Bytes of a processor's first-level cache for data; 32 KiB where the system does not say.
int64_t first_level_cache();

}  // namespace pyquant
