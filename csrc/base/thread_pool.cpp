#include "base/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/denormals.h"

namespace pyquant {
namespace {

// How often a worker looks for new work before it sleeps: some 300 us, as long as it may have to wait for another that
// has more to do. To be woken takes 30 us, a tenth of what a layer takes.
constexpr int kSpins = 8000;

// Indices are taken several at a time where a share has more than so many: to take one takes longer than some bodies.
constexpr int64_t kTurns = 64;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Wait until `value` differs from `old`: first looking, then sleeping.
uint32_t wait_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (const uint32_t now = value.load(std::memory_order_acquire); now != old) return now;
    relax();
  }
  uint32_t now = value.load(std::memory_order_acquire);
  while (now == old) {
    value.wait(old, std::memory_order_acquire);
    now = value.load(std::memory_order_acquire);
  }
  return now;
}

}  // namespace

struct ThreadPool::Workers {
  explicit Workers(int size) : shares(static_cast<size_t>(size + 1)) {
    try {
      for (int worker = 1; worker <= size; ++worker) threads.emplace_back([this, worker] { work(worker); });
    } catch (const std::system_error&) {
      // The system gives no more threads: those that there are take the shares of the others.
    }
  }

  ~Workers() {
    body = nullptr;
    announce();
    for (std::thread& thread : threads) thread.join();
  }

  void run(int64_t count, const LoopBody& loop_body) {
    body = &loop_body;
    const auto parts = static_cast<int64_t>(shares.size());
    step = std::max<int64_t>(count / (parts * kTurns), 1);
    for (int64_t part = 0; part < parts; ++part) {
      shares[part].next.store(part * count / parts, std::memory_order_relaxed);
      shares[part].end = (part + 1) * count / parts;
    }
    busy.store(static_cast<uint32_t>(threads.size()), std::memory_order_relaxed);
    announce();
    take_indices(0);
    // Every worker has to have left the loop, not only the loop to be exhausted: body lives on the caller's stack.
    uint32_t left = busy.load(std::memory_order_acquire);
    while (left != 0) left = wait_for_change(busy, left);
  }

  void announce() {
    epoch.fetch_add(1, std::memory_order_release);
    epoch.notify_all();
  }

  void work(int worker) {
    const DenormalsAreZero denormals_are_zero;
    uint32_t seen = 0;
    for (;;) {
      seen = wait_for_change(epoch, seen);
      if (body == nullptr) return;
      take_indices(worker);
      if (busy.fetch_sub(1, std::memory_order_acq_rel) == 1) busy.notify_one();
    }
  }

  // First those of the worker's own share: in the next loop it has about the same, of which its cache knows something.
  // Then what is left of the others'.
  void take_indices(int worker) {
    for (size_t i = 0; i < shares.size(); ++i) {
      Share& share = shares[(worker + i) % shares.size()];
      for (;;) {
        const int64_t first = share.next.fetch_add(step, std::memory_order_relaxed);
        if (first >= share.end) break;
        for (int64_t index = first; index < std::min(first + step, share.end); ++index) (*body)(index, worker);
      }
    }
  }

  // Neighbouring indices.
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  const LoopBody* body = nullptr;
  std::vector<Share> shares;  // by worker
  int64_t step = 1;
  alignas(64) std::atomic<uint32_t> epoch{0};
  alignas(64) std::atomic<uint32_t> busy{0};
  std::vector<std::thread> threads;  // last: they use the members above
};

ThreadPool::ThreadPool(int threads) : threads_(threads) {}

ThreadPool::~ThreadPool() {
  // In a forked child the threads do not exist; joining them would wait for ever.
  if (workers_ && owner_ != getpid()) static_cast<void>(workers_.release());
}

void ThreadPool::parallel_for(int64_t count, LoopBody body) {
  if (threads_ > 1 && count > 1) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      if (const pid_t process = getpid(); owner_ != process) {
        static_cast<void>(workers_.release());
        workers_ = std::make_unique<Workers>(threads_ - 1);
        owner_ = process;
      }
      workers_->run(count, body);
      return;
    }
  }
  for (int64_t index = 0; index < count; ++index) body(index, 0);
}

}  // namespace pyquant
