// A small pool of threads that share out the indices of a loop; safe to use again in a forked child.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>

#include "base/fork_mutex.h"

namespace pyquant {

// A reference to a callable; cheaper than std::function, valid while the callable lives.
class LoopBody {
 public:
  template <typename F>
  LoopBody(const F& f)  // NOLINT: implicit on purpose, so that a lambda can be passed
      : object_(&f),
        call_([](const void* object, int64_t index, int worker) { (*static_cast<const F*>(object))(index, worker); }) {}
  void operator()(int64_t index, int worker) const { call_(object_, index, worker); }

 private:
  const void* object_;
  void (*call_)(const void*, int64_t, int);
};

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Call body(index, worker) for each index in [0, count), worker in [0, threads()); return when all are done. The body
  // must not throw. While another caller uses the pool, the calling thread does all the work itself, as worker 0.
  void parallel_for(int64_t count, LoopBody body);

 private:
  struct Workers;

  const int threads_;
  ForkMutex mutex_;  // held by the caller whose loop is running
  std::unique_ptr<Workers> workers_;
  pid_t owner_ = 0;  // the process in which workers_ run
};

}  // namespace pyquant
