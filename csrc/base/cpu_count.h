// How many processors this process may use.
#pragma once

namespace pyquant {

// The smaller of the affinity mask's size and the cgroup's quota (rounded up), at least 1.
int available_cpus();

}  // namespace pyquant
