// How large the first- and the second-level cache are.
#pragma once

#include <cstdint>

namespace pyquant {

// Bytes of a processor's first-level cache for data; 32 KiB where the system does not say.
int64_t first_level_cache();

// Of its second-level cache; 1 MiB where the system does not say.
int64_t second_level_cache();

}  // namespace pyquant
