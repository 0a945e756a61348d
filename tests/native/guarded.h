// Arrays beyond which no kernel under test can read or write unnoticed.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "base/aligned_buffer.h"
#include "base/sizes.h"

namespace pyquant {

// What memory holds that nobody has written. Inputs: NaN, so that an output which depends on them is NaN as well.
// Outputs: other bytes than an input's copied by mistake, and too large a number to be overlooked in a sum.
constexpr unsigned char kUnsetInput = 0xff;
constexpr unsigned char kUnsetOutput = 0x7e;

struct Place {
  int64_t slack = kSlackBytes;  // bytes behind the array that may be touched
  int64_t alignment = 1;        // of the array's begin; more of it moves the array away from the page behind it
};
constexpr Place kExact = {.slack = 0};
constexpr Place kAligned = {.alignment = kAlignment};

// An array, its slack, and behind them a page whose use ends the program; all bytes around are the unset ones.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size, unsigned char unset, Place place = {}) : size_(size), unset_(unset), place_(place) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
    usable_ = round_up(kFront + bytes + place.slack + place.alignment, page);
    void* memory = mmap(nullptr, mapped(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    memory_ = static_cast<unsigned char*>(memory);
    std::memset(memory_, unset, static_cast<size_t>(usable_));
    mprotect(memory_ + usable_, static_cast<size_t>(page), PROT_NONE);
    const int64_t start = usable_ - place.slack - bytes;
    data_ = reinterpret_cast<T*>(memory_ + start / place.alignment * place.alignment);
  }
  Guarded(Guarded&& other) noexcept
      : size_(other.size_),
        usable_(other.usable_),
        unset_(other.unset_),
        place_(other.place_),
        memory_(other.memory_),
        data_(other.data_) {
    other.memory_ = nullptr;
  }
  Guarded& operator=(Guarded&&) = delete;
  ~Guarded() {
    if (memory_ != nullptr) munmap(memory_, mapped());
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

  bool is_unset(int64_t i) const { return is_unset(reinterpret_cast<const unsigned char*>(data_ + i), sizeof(T)); }

  // Whether nothing around the array and its slack was written.
  bool surroundings_are_unset() const {
    const auto* begin = reinterpret_cast<const unsigned char*>(data_);
    const auto* end = reinterpret_cast<const unsigned char*>(data_ + size_) + place_.slack;
    return is_unset(memory_, begin - memory_) && is_unset(end, memory_ + usable_ - end);
  }

 private:
  static constexpr int64_t kFront = 256;

  bool is_unset(const unsigned char* bytes, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      if (bytes[i] != unset_) return false;
    }
    return true;
  }
  size_t mapped() const { return static_cast<size_t>(usable_ + sysconf(_SC_PAGESIZE)); }

  int64_t size_, usable_;
  unsigned char unset_;
  Place place_;
  unsigned char* memory_;
  T* data_;
};

}  // namespace pyquant
