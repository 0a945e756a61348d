// A mutex that a forked child never inherits locked: fork waits until nobody holds one of them.
#pragma once

#include <mutex>

namespace pyquant {

// Holders must not take a second ForkMutex, nor fork, while they hold one.
class ForkMutex {
 public:
  ForkMutex();
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock() { mutex_.lock(); }
  bool try_lock() { return mutex_.try_lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

}  // namespace pyquant
