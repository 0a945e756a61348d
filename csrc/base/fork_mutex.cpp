#include "base/fork_mutex.h"

#include <pthread.h>

#include <algorithm>
#include <vector>

namespace pyquant {
namespace {

// Never destroyed: the handlers may run while the process exits.
struct Registry {
  std::mutex mutex;
  std::vector<ForkMutex*> members;
};

Registry& registry() {
  static Registry* const instance = [] {
    auto* created = new Registry;
    pthread_atfork(
        [] {
          registry().mutex.lock();
          for (ForkMutex* member : registry().members) member->lock();
        },
        [] {
          for (ForkMutex* member : registry().members) member->unlock();
          registry().mutex.unlock();
        },
        [] {
          for (ForkMutex* member : registry().members) member->unlock();
          registry().mutex.unlock();
        });
    return created;
  }();
  return *instance;
}

}  // namespace

ForkMutex::ForkMutex() {
  const std::lock_guard lock(registry().mutex);
  registry().members.push_back(this);
}

ForkMutex::~ForkMutex() {
  const std::lock_guard lock(registry().mutex);
  std::erase(registry().members, this);
}

}  // namespace pyquant
